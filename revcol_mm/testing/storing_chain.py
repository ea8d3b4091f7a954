"""What a reversible chain is compared with: the same sums, of which autograd stores everything."""

from typing import Sequence

import torch
from torch import Tensor

from revcol_mm.ops import Coupling, exact_sums
from revcol_mm.ops.exact_sums import Plan, State


class StoringChain:
    """One forward pass through a chain of links. Its values are those of a ReversibleChain, to the last bit.

    Its gradients are autograd's of the plain sum :func:`revcol_mm.ops.couple`.
    """

    def __init__(self) -> None:
        self.states: dict[int, State] = {}
        self.offsets: dict[int, Tensor] = {}

    def __call__(self, link: Sequence[Coupling], x: Tensor, features: Sequence[Tensor]) -> list[Tensor]:
        """Run the next link; does what :func:`revcol_mm.ops.couple` does."""
        features = list(features)
        for coupling in link:
            level, before = coupling.level, features[coupling.level]
            residual = coupling.residual(x, features)
            # The graph is that of the plain sum, layout and values are the reversible chain's.
            result = torch.addcmul(residual, coupling.alpha, before)
            dim = exact_sums.channel_dim(coupling.alpha)
            result = result.movedim(dim, -1).contiguous().movedim(-1, dim)
            with torch.no_grad():
                residual, alpha = residual.detach(), coupling.alpha.detach()
                if level in self.states:
                    state, offset = self.states[level], self.offsets[level]
                    self.states[level], _ = exact_sums.advance(residual, state, alpha, offset, Plan(16, None))
                else:
                    start = before.expand(residual.shape)
                    self.states[level], self.offsets[level] = exact_sums.start(residual, start, alpha, None)
                features[level] = result
                result.copy_(self.states[level].feature)
        return features
