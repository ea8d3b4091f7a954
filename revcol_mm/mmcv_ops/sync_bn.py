"""Batch normalization over processes (MMSyncBN): the parts between which MMCV sums over processes.

Inputs are (B, C, S) with all of space in S; statistics (C,) are float32, and over batch and space.
"""

from torch import Tensor

OVER = (0, 2)  # dimensions of batch and space


def sync_bn_forward_mean(input: Tensor, mean: Tensor) -> None:
    """Mean of this process, into ``mean`` (C,)."""
    mean.copy_(input.float().mean(OVER))


def sync_bn_forward_var(input: Tensor, mean: Tensor, var: Tensor) -> None:
    """Mean squared distance from the mean over all processes (C,), into ``var`` (C,)."""
    var.copy_((input.float() - mean[:, None]).square().mean(OVER))


def sync_bn_forward_output(
    input: Tensor,
    mean: Tensor,
    var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    norm: Tensor,
    std: Tensor,
    output: Tensor,
    eps: float,
    momentum: float | Tensor,
    group_size: int,
) -> None:
    """Normalize by the statistics of all processes, and move the running ones, if there are any.

    Writes ``norm`` (B, C, S) and ``std`` (C,), which backward takes, and ``output`` (B, C, S).
    """
    std.copy_((var + eps).sqrt())
    norm.copy_((input - mean[:, None]) / std[:, None])
    output.copy_(norm if weight is None else norm * weight[:, None] + bias[:, None])
    if running_mean is not None:
        count = input.shape[0] * input.shape[2] * group_size
        running_mean.lerp_(mean, momentum)
        running_var.lerp_(var * (count / (count - 1)) if count > 1 else var, momentum)


def sync_bn_backward_param(grad_output: Tensor, norm: Tensor, grad_weight: Tensor, grad_bias: Tensor) -> None:
    """Sums of this process, into ``grad_weight`` and ``grad_bias`` (C,)."""
    grad_weight.copy_((grad_output * norm).sum(OVER))
    grad_bias.copy_(grad_output.float().sum(OVER))


def sync_bn_backward_data(
    grad_output: Tensor,
    weight: Tensor,
    grad_weight: Tensor,
    grad_bias: Tensor,
    norm: Tensor,
    std: Tensor,
    grad_input: Tensor,
) -> None:
    """Gradient of the input (B, C, S), into ``grad_input``, of sums that are means over processes."""
    count = grad_output.shape[0] * grad_output.shape[2]
    mean = (grad_weight[:, None] * norm + grad_bias[:, None]) / count
    grad_input.copy_((weight / std)[:, None] * (grad_output - mean))
