"""Recomputing a cheap function in backward instead of storing what it returned."""

from contextlib import AbstractContextManager, nullcontext
from typing import Callable

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks


def recomputed(
    result: Tensor, function: Callable[[Tensor], Tensor], source: Tensor
) -> AbstractContextManager:
    """Where autograd would store ``result`` for backward, have it compute ``function(source)`` again.

    Worth it where ``source`` is stored anyway and ``function`` costs little, as activations and
    normalisations do.

    Args:
        result: What ``function(source)`` has returned.
        function: Draws no random numbers.
        source: Its input.

    Returns:
        A context for the operations that use ``result``.
    """
    if not torch.is_grad_enabled() or torch.compiler.is_compiling():  # a compiler decides for itself
        return nullcontext()
    pointer, source = result.data_ptr(), source.detach()

    def pack(tensor: Tensor) -> Tensor | torch.Size:
        return tensor.shape if tensor.data_ptr() == pointer else tensor

    def unpack(packed: Tensor | torch.Size) -> Tensor:
        if isinstance(packed, Tensor):
            return packed
        with torch.no_grad():
            return function(source).view(packed)

    return saved_tensors_hooks(pack, unpack)
