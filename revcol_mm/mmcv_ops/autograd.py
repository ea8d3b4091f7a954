"""What the ops have in common: precision, and gradients."""

from functools import reduce
from typing import Callable, Sequence

import torch
from torch import Tensor


def upcast(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Tensors in their common type, which is at least float32: half precision is rounded once, at the end."""
    dtype = reduce(torch.promote_types, (x.dtype for x in tensors), torch.float32)
    return tuple(x.to(dtype) for x in tensors)


def gradients(op: Callable[..., Tensor], inputs: Sequence[Tensor], grad_output: Tensor) -> tuple[Tensor, ...]:
    """Gradients of an op, which is run once more: nothing is stored between MMCV's two calls.

    Args:
        op: A differentiable function of ``inputs``.
        inputs: Of a linear op any tensors of the right shapes will do.
        grad_output: Of the shape of the op's output.

    Returns:
        A gradient for each input.
    """
    with torch.enable_grad():
        inputs = [x.detach().requires_grad_() for x in inputs]
        output = op(*inputs)
    if not output.requires_grad:  # nothing was computed of them, as without RoIs
        return tuple(map(torch.zeros_like, inputs))
    grad_output = grad_output.to(output.dtype)
    return torch.autograd.grad(output, inputs, grad_output, allow_unused=True, materialize_grads=True)
