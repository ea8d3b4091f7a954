"""The multi-level reversible unit (RevCol, arXiv 2212.11696, equations 2 and 3).

A chain of couplings updates a list of features, one level at a time::

    forward:  c[l] <- F(inputs) + alpha * c[l]
    inverse:  c[l] <- (c[l] - F(inputs)) / alpha

The inputs of ``F`` are the chain's constant input ``x`` and the *current* value of levels other than
``l``. So every update can be undone, last one first, whatever ``F`` computes. With ``L`` levels this is
the paper's ``x_t = F_t(x_{t-1}, ..., x_{t-L+1}) + gamma x_{t-L}`` where ``t = column * L + level``.
"""

from contextlib import nullcontext
from typing import Callable, ContextManager, NamedTuple, Sequence

import torch
from torch import Tensor


class Coupling(NamedTuple):
    """One update ``c[level] <- function(*inputs) + alpha * c[level]``.

    Args:
        level: Index of the feature that is updated.
        reads: Indices of the features passed to ``function``, in order; ``None`` stands for ``x``.
            ``level`` itself must not be among them, or the update could not be undone.
        function: ``F``; its result has the shape of ``c[level]``.
        alpha: Non-zero scale of the shortcut, broadcastable to ``c[level]``: one number, or one for each
            channel, which any dimension may be.
    """

    level: int
    reads: tuple[int | None, ...]
    function: Callable[..., Tensor]
    alpha: Tensor

    def sources(self, x: Tensor, features: Sequence[Tensor]) -> list[Tensor]:
        """The inputs of ``F``."""
        return [x if level is None else features[level] for level in self.reads]

    def residual(self, x: Tensor, features: Sequence[Tensor]) -> Tensor:
        """Compute ``F`` on its inputs, without the shortcut."""
        with _without_cast_cache(x.device.type):
            return self.function(*self.sources(x, features))


def _without_cast_cache(device_type: str) -> ContextManager:
    """Where there is no graph, let go of autocast's casts of weights as soon as they are used.

    Otherwise autocast keeps them to the end of its context: half as much memory as the weights, in evaluation
    often more than all features. A forward pass uses each but once. (Several in one context, as for sliding
    windows, cast again each time, which is a few percent of a pass.)
    """
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return nullcontext()
    if not torch.amp.is_autocast_available(device_type) or not torch.is_autocast_enabled(device_type):
        return nullcontext()
    dtype = torch.get_autocast_dtype(device_type)
    return torch.autocast(device_type, dtype=dtype, cache_enabled=False)


def couple(couplings: Sequence[Coupling], x: Tensor, features: Sequence[Tensor]) -> list[Tensor]:
    """Run a chain of couplings.

    Args:
        couplings: The updates, first one first.
        x: Constant input of the chain.
        features: One tensor for each level. Where a level has no value yet, a zero of any shape that
            broadcasts will do.

    Returns:
        The updated features; ``features`` itself is left as it is.
    """
    features = list(features)
    for coupling in couplings:
        features[coupling.level] = torch.addcmul(
            coupling.residual(x, features), coupling.alpha, features[coupling.level]
        )
    return features


def uncouple(couplings: Sequence[Coupling], x: Tensor, features: Sequence[Tensor]) -> list[Tensor]:
    """Undo :func:`couple`: from its result back to the features it was given.

    Note:
        Exact in exact arithmetic. In floating point each update loses about ``log2(1 / |alpha|)`` bits.
    """
    features = list(features)
    for coupling in reversed(couplings):
        residual = coupling.residual(x, features)
        features[coupling.level] = (features[coupling.level] - residual) / coupling.alpha
    return features
