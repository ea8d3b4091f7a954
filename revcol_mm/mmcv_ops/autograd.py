"""Precision and gradients of all ops in this package."""

from functools import reduce
from typing import Callable, Sequence

import torch
from torch import Tensor


def upcast(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Convert tensors to their common dtype, or to float32 if that is a half precision.

    Ops compute in this dtype, so that a result in half precision is rounded only once, at the end.
    """
    dtype = reduce(torch.promote_types, (x.dtype for x in tensors), torch.float32)
    return tuple(x.to(dtype) for x in tensors)


def write_gradients(
    op: Callable[..., Tensor], inputs: Sequence[Tensor], grad_output: Tensor, targets: Sequence[Tensor]
) -> None:
    """Compute the gradients of an op and copy them into ``targets``.

    MMCV calls forward and backward separately. The op is run again here, so that only its inputs are stored
    between the two calls.

    Args:
        op: A differentiable function of ``inputs``.
        inputs: Tensors to differentiate with respect to. If the op is linear, only their shapes matter.
        grad_output: Gradient of the op's output, in its shape.
        targets: Tensors that receive the gradients of ``inputs``, in the same order.
    """
    with torch.enable_grad():
        inputs = [x.detach().requires_grad_() for x in inputs]
        output = op(*inputs)
    if output.requires_grad:
        grad_output = grad_output.to(output.dtype)
        grads = torch.autograd.grad(output, inputs, grad_output, allow_unused=True, materialize_grads=True)
    else:  # The output does not depend on the inputs, for example because there are no RoIs.
        grads = map(torch.zeros_like, inputs)
    for target, grad in zip(targets, grads):
        target.copy_(grad)
