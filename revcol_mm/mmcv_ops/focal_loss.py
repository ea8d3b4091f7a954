"""Focal loss, https://arxiv.org/abs/1708.02002 (equation 5), of N logits or probabilities for C classes.

The gradients are written out, as MMCV's are: that of a logarithm which is bounded below would be 0 there.
"""

import torch
from torch import Tensor

from .autograd import upcast


def _log(p: Tensor) -> Tensor:
    return p.clamp(min=torch.finfo(torch.float32).tiny).log()


def _positive(input: Tensor, target: Tensor) -> Tensor:
    """Which of (N, C) are the targets (N,); C stands for the background, which is no class."""
    return target[:, None] == torch.arange(input.shape[1], device=input.device)


def _weigh(loss: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    """Multiply what belongs to a target with its class's weight (C,), if there are any."""
    return loss * weight.to(loss.dtype)[target].view(-1, *(1,) * (loss.ndim - 1)) if weight.numel() else loss


def sigmoid_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    """Loss of each logit, (N, C), into ``output``; targets are (N,), classes' weights (C,) or none (0,)."""
    (x,) = upcast(input)
    p = x.sigmoid()
    loss = torch.where(
        _positive(x, target), -alpha * (1 - p) ** gamma * _log(p), (alpha - 1) * p**gamma * _log(1 - p)
    )
    output.copy_(_weigh(loss, weight, target))


def sigmoid_focal_loss_backward(
    input: Tensor, target: Tensor, weight: Tensor, grad_input: Tensor, gamma: float, alpha: float
) -> None:
    """Derivative of each loss of :func:`sigmoid_focal_loss_forward`, (N, C), into ``grad_input``."""
    (x,) = upcast(input)
    p = x.sigmoid()
    positive = -alpha * (1 - p) ** gamma * (1 - p - gamma * p * _log(p))
    negative = (alpha - 1) * p**gamma * (gamma * (1 - p) * _log(1 - p) - p)
    grad_input.copy_(_weigh(torch.where(_positive(x, target), positive, negative), weight, target))


def _probability_of_target(softmax: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Probability (N,) of each target, the targets, and which are any: a negative one has no loss."""
    (softmax,) = upcast(softmax)
    labels = target.clamp(min=0)
    return softmax.gather(1, labels[:, None])[:, 0], labels, target >= 0


def softmax_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    """Loss (N,) of probabilities (N, C) into ``output``, with targets (N,) and weights (C,) or none (0,)."""
    p, labels, counts = _probability_of_target(input, target)
    output.copy_(_weigh(-alpha * (1 - p) ** gamma * _log(p) * counts, weight, labels))


def softmax_focal_loss_backward(
    input: Tensor,
    target: Tensor,
    weight: Tensor,
    buff: Tensor,
    grad_input: Tensor,
    gamma: float,
    alpha: float,
) -> None:
    """Gradient of :func:`softmax_focal_loss_forward` for the logits, (N, C), into ``grad_input``.

    ``buff`` (N,) is free for use.
    """
    p, labels, counts = _probability_of_target(input, target)
    derivative = alpha * (gamma * (1 - p) ** (gamma - 1) * p * _log(p) - (1 - p) ** gamma) * counts
    derivative = _weigh(derivative, weight, labels)[:, None]
    grad_input.copy_(derivative * (_positive(input, target).to(derivative.dtype) - input))
