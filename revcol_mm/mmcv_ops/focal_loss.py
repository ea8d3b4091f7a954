"""Focal loss, https://arxiv.org/abs/1708.02002 (equation 5), for N samples and C classes.

Gradients are written out, as in MMCV: autograd's would be 0 where the logarithm's argument is clamped.
"""

import torch
from torch import Tensor

from .autograd import upcast


def _log(p: Tensor) -> Tensor:
    return p.clamp(min=torch.finfo(torch.float32).tiny).log()


def _is_target(input: Tensor, target: Tensor) -> Tensor:
    """Return a mask (N, C) of the target classes (N,). The background has number C and no column."""
    return target[:, None] == torch.arange(input.shape[1], device=input.device)


def _weigh(loss: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    """Multiply losses (N, ...) by the weight (C,) of their target class, if ``weight`` is not empty."""
    return loss * weight.to(loss.dtype)[target].view(-1, *(1,) * (loss.ndim - 1)) if weight.numel() else loss


def sigmoid_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    """Write the loss of each logit into ``output``.

    Args:
        input: Logits, (N, C).
        target: Classes, (N,), from 0 to C; C is the background.
        weight: Weight of each class, (C,), or empty.
        output: (N, C).
        gamma: Exponent of the modulating factor.
        alpha: Weight of targets; others have 1 - alpha.
    """
    (x,) = upcast(input)
    p = x.sigmoid()
    positive = -alpha * (1 - p) ** gamma * _log(p)
    negative = (alpha - 1) * p**gamma * _log(1 - p)
    output.copy_(_weigh(torch.where(_is_target(x, target), positive, negative), weight, target))


def sigmoid_focal_loss_backward(
    input: Tensor, target: Tensor, weight: Tensor, grad_input: Tensor, gamma: float, alpha: float
) -> None:
    """Write the derivative of each loss of :func:`sigmoid_focal_loss_forward` into ``grad_input`` (N, C)."""
    (x,) = upcast(input)
    p = x.sigmoid()
    positive = -alpha * (1 - p) ** gamma * (1 - p - gamma * p * _log(p))
    negative = (alpha - 1) * p**gamma * (gamma * (1 - p) * _log(1 - p) - p)
    grad_input.copy_(_weigh(torch.where(_is_target(x, target), positive, negative), weight, target))


def _probability_of_target(softmax: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the probability of each target, the target clamped to 0, and a mask of targets that count.

    All are (N,). A negative target has no loss.
    """
    (softmax,) = upcast(softmax)
    labels = target.clamp(min=0)
    return softmax.gather(1, labels[:, None])[:, 0], labels, target >= 0


def softmax_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    """Write the loss of each sample into ``output`` (N,).

    Args:
        input: Probabilities, (N, C).
        target: Classes, (N,); samples with a negative one have no loss.
        weight: Weight of each class, (C,), or empty.
        output: (N,).
        gamma: Exponent of the modulating factor.
        alpha: Factor of the loss.
    """
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
    """Write the gradient of :func:`softmax_focal_loss_forward` for the logits into ``grad_input`` (N, C).

    ``buff`` is scratch memory of the compiled op and is not used.
    """
    p, labels, counts = _probability_of_target(input, target)
    derivative = alpha * (gamma * (1 - p) ** (gamma - 1) * p * _log(p) - (1 - p) ** gamma) * counts
    derivative = _weigh(derivative, weight, labels)[:, None]
    grad_input.copy_(derivative * (_is_target(input, target).to(derivative.dtype) - input))
