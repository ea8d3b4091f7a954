"""Training a chain of couplings: the forward pass, of which autograd stores what backward needs."""

from typing import Sequence

import torch
from torch import Tensor

from .coupling import Coupling
from .lost_bits import grid_offset


class Chain:
    """One forward pass through a chain of links (RevCol's columns), each of some couplings (its levels).

    The sums ``F + alpha * c`` are held in float64 on a fixed grid, of which ``F`` sees the value rounded to
    its own type. That is what makes a :class:`ReversibleChain` exact; summed in the same way here, the two
    have the same outputs to the last bit, and the same gradients up to the rounding of backward itself.
    (:func:`couple` sums in the type of the features. In a deep chain that alone can change the fifth digit.)
    """

    def __init__(self) -> None:
        self.offsets: list[Tensor | None] = []
        # The state after the last coupling: the stream, and rounded to the type of the features.
        self.stream: list[Tensor | None] = []
        self.features: list[Tensor] = []
        self.versions: list[int] = []  # of the features that forward has returned

    def __call__(self, couplings: Sequence[Coupling], x: Tensor, features: Sequence[Tensor]) -> list[Tensor]:
        """Run the next link; does what :func:`couple` does.

        Args:
            couplings: One for each level, level 0 first.
            x: Constant input of the chain.
            features: The result of the link before; to the first link, what the chain starts from. Where
                something, such as a forward hook, has changed it, the sum goes on from the change.

        Returns:
            The updated features.
        """
        features = list(features)
        if not self.stream:
            self._start(features)
        for level, feature in enumerate(features):
            if not self._is_own(level, feature):
                self.stream[level] = feature.detach().double()
        for coupling in couplings:
            level = coupling.level
            residual = coupling.residual(x, features)
            # The graph is that of the plain sum, the values are the grid's.
            features[level] = torch.addcmul(residual, coupling.alpha, features[level])
            with torch.no_grad():
                stream = self._advance(coupling, residual, features[level].dtype)
                stream -= self.offsets[level]
                features[level].copy_(stream)
            self._take(level, features[level])
        return features

    def _start(self, features: Sequence[Tensor]) -> None:
        self.offsets = [None] * len(features)
        self.stream = [feature.detach().double() for feature in features]
        self.features, self.versions = [None] * len(features), [0] * len(features)
        for level, feature in enumerate(features):
            self._take(level, feature)

    def _take(self, level: int, feature: Tensor) -> None:
        """Note a level's state as it is returned."""
        self.features[level] = feature
        if not torch.compiler.is_compiling():
            self.versions[level] = feature._version

    def _is_own(self, level: int, feature: Tensor) -> bool:
        """Whether a feature is this chain's, as it was returned, or at least its memory, as FSDP's views."""
        own = self.features[level]
        if torch.compiler.is_compiling():
            return feature is own
        return feature.data_ptr() == own.data_ptr() and feature._version == self.versions[level]

    def _advance(self, coupling: Coupling, residual: Tensor, dtype: torch.dtype) -> Tensor:
        """Go from the stream before a coupling to the one after it; the offset is left in it.

        Args:
            coupling: The next one.
            residual: What its function computes.
            dtype: Type of the features.
        """
        level = coupling.level
        stream = add_shortcut(residual, coupling.alpha, self.stream[level])
        if self.offsets[level] is None:
            self.offsets[level] = grid_offset(stream, dtype)
        stream += self.offsets[level]
        self.stream[level] = stream
        return stream


def add_shortcut(residual: Tensor, alpha: Tensor, before: Tensor) -> Tensor:
    """``residual + alpha * before`` in float64, in memory of its own."""
    return residual.to(torch.float64, copy=True).addcmul_(before, alpha.double())
