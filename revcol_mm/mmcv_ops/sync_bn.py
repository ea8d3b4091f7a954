"""Batch normalization over several processes (MMSyncBN).

MMCV calls these functions one after the other and all-reduces their results between the calls. Inputs are
(B, C, S), where S is the number of positions. Statistics are (C,), float32, over batch and positions.
"""

from torch import Tensor

REDUCED = (0, 2)  # batch and positions


def sync_bn_forward_mean(input: Tensor, mean: Tensor) -> None:
    """Write the mean of this process's batch into ``mean`` (C,)."""
    mean.copy_(input.float().mean(REDUCED))


def sync_bn_forward_var(input: Tensor, mean: Tensor, var: Tensor) -> None:
    """Write this process's mean squared distance from the global ``mean`` (C,) into ``var`` (C,)."""
    var.copy_((input.float() - mean[:, None]).square().mean(REDUCED))


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
    """Normalize with the global statistics and update the running statistics, if there are any.

    Writes ``norm`` (B, C, S) and ``std`` (C,), which backward needs, and ``output`` (B, C, S).
    """
    std.copy_((var + eps).sqrt())
    norm.copy_((input - mean[:, None]) / std[:, None])
    output.copy_(norm if weight is None else norm * weight[:, None] + bias[:, None])
    if running_mean is not None:
        count = input.shape[0] * input.shape[2] * group_size
        running_mean.lerp_(mean, momentum)
        running_var.lerp_(var * (count / (count - 1)) if count > 1 else var, momentum)


def sync_bn_backward_param(grad_output: Tensor, norm: Tensor, grad_weight: Tensor, grad_bias: Tensor) -> None:
    """Write this process's gradients into ``grad_weight`` and ``grad_bias`` (C,)."""
    grad_weight.copy_((grad_output * norm).sum(REDUCED))
    grad_bias.copy_(grad_output.float().sum(REDUCED))


def sync_bn_backward_data(
    grad_output: Tensor,
    weight: Tensor,
    grad_weight: Tensor,
    grad_bias: Tensor,
    norm: Tensor,
    std: Tensor,
    grad_input: Tensor,
) -> None:
    """Write the gradient of the input into ``grad_input`` (B, C, S).

    ``grad_weight`` and ``grad_bias`` (C,) are those of :func:`sync_bn_backward_param`, averaged by MMCV.
    """
    count = grad_output.shape[0] * grad_output.shape[2]
    mean = (grad_weight[:, None] * norm + grad_bias[:, None]) / count
    grad_input.copy_((weight / std)[:, None] * (grad_output - mean))
