"""Reference for comparisons: a chain that stores all activations but computes a reversible chain's values."""

from typing import Sequence

import torch
from torch import Tensor

from revcol_mm.ops import Coupling, exact_couplings
from revcol_mm.ops.exact_couplings import CodePlan
from revcol_mm.ops.exact_sums import State


class StoringChain:
    """One forward pass through a chain of links, with bitwise the same features as a ReversibleChain.

    The gradients are those that autograd computes for :func:`revcol_mm.ops.couple`.
    """

    def __init__(self) -> None:
        self.states: dict[int, State] = {}

    def __call__(self, link: Sequence[Coupling], x: Tensor, features: Sequence[Tensor]) -> list[Tensor]:
        """Run the next link; arguments and result as for :func:`revcol_mm.ops.couple`."""
        features = list(features)
        for coupling in link:
            level, before = coupling.level, features[coupling.level]
            residual = coupling.residual(x, features)
            # Record the graph of the plain sum, then overwrite its values with the reversible chain's.
            result = torch.addcmul(residual, coupling.alpha, before)
            dim = exact_couplings.channel_dim(coupling.alpha)
            result = result.movedim(dim, -1).contiguous().movedim(-1, dim)
            with torch.no_grad():
                residual, alpha = residual.detach(), coupling.alpha.detach()
                if level in self.states:
                    plan = CodePlan(16, None)  # the codes are not used
                    self.states[level], _ = exact_couplings.advance(residual, self.states[level], alpha, plan)
                else:
                    self.states[level] = exact_couplings.start(residual, before, alpha)
                features[level] = result
                result.copy_(self.states[level].feature)
        return features
