"""The multi-level reversible unit (RevCol, arXiv 2212.11696, equations 2 and 3).

A chain of couplings updates a list of features, one level at a time::

    forward:  c[l] <- F(inputs) + alpha * c[l]
    inverse:  c[l] <- (c[l] - F(inputs)) / alpha

The inputs of ``F`` are the chain's constant input ``x`` and the current values of levels other than ``l``.
Every update can therefore be undone, in reverse order, whatever ``F`` computes. With ``L`` levels this is the
paper's ``x_t = F_t(x_{t-1}, ..., x_{t-L+1}) + gamma x_{t-L}``, where ``t = column * L + level``.
"""

from contextlib import nullcontext
from typing import Callable, ContextManager, NamedTuple, Sequence

import torch
from torch import Tensor


class Coupling(NamedTuple):
    """One update ``c[level] <- function(*inputs) + alpha * c[level]``.

    Args:
        level: Index of the feature to update.
        reads: Indices of the features passed to ``function``, in this order; ``None`` stands for ``x``. Must
            not contain ``level``: the update could not be undone.
        function: ``F``. Its result has the shape of ``c[level]``.
        alpha: Scale of the shortcut, non-zero and broadcastable to ``c[level]``. At most one dimension of
            alpha may be larger than 1; it counts as the channel dimension, from the right: (), (C,),
            (1, C, 1, 1).
    """

    level: int
    reads: tuple[int | None, ...]
    function: Callable[..., Tensor]
    alpha: Tensor

    def residual(self, x: Tensor, features: Sequence[Tensor]) -> Tensor:
        """Compute ``F`` on its inputs, without the shortcut."""
        with _without_cast_cache(x.device.type):
            return self.function(*(x if level is None else features[level] for level in self.reads))


def _without_cast_cache(device_type: str) -> ContextManager:
    """Return a context in which autocast does not cache cast weights, if no gradients are recorded.

    By default autocast keeps the casts until its context ends. They take half the memory of the weights,
    which in evaluation is often more than all features, and a forward pass uses each cast only once. Several
    forward passes in one autocast context, as in sliding-window inference, cast again each time; this costs a
    few percent.
    """
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return nullcontext()
    if not torch.amp.is_autocast_available(device_type) or not torch.is_autocast_enabled(device_type):
        return nullcontext()
    dtype = torch.get_autocast_dtype(device_type)
    return torch.autocast(device_type, dtype=dtype, cache_enabled=False)


def couple(couplings: Sequence[Coupling], x: Tensor, features: Sequence[Tensor]) -> list[Tensor]:
    """Run a chain of couplings; autograd stores all activations.

    Args:
        couplings: The updates, in the order in which they run.
        x: Constant input of the chain.
        features: One tensor per level. A level without a value yet may be a zero of any broadcastable shape.

    Returns:
        The updated features. The list ``features`` is not modified.
    """
    features = list(features)
    for coupling in couplings:
        features[coupling.level] = torch.addcmul(
            coupling.residual(x, features), coupling.alpha, features[coupling.level]
        )
    return features


def uncouple(couplings: Sequence[Coupling], x: Tensor, features: Sequence[Tensor]) -> list[Tensor]:
    """Invert :func:`couple`: compute its input ``features`` from its result.

    Note:
        The result is approximate: each update loses about ``log2(1 / |alpha|)`` bits to rounding.
    """
    features = list(features)
    for coupling in reversed(couplings):
        residual = coupling.residual(x, features)
        features[coupling.level] = (features[coupling.level] - residual) / coupling.alpha
    return features
