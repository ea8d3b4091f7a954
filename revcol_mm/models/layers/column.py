"""One column: a sub-network of levels, tied to the column before by reversible couplings."""

from typing import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn

from revcol_mm.ops import Coupling, couple

MIN_ABS_ALPHA = 1e-3  # RevCol official code, `SubNet.forward`: the inverse divides by alpha


def bound_alpha(alpha: Tensor) -> Tensor:
    """Move ``alpha`` to the nearest value with ``|alpha| >= 1e-3``; zero becomes ``+1e-3``."""
    return torch.where(alpha < 0, alpha.clamp(max=-MIN_ABS_ALPHA), alpha.clamp(min=MIN_ABS_ALPHA))


@torch.no_grad()
def bound_alphas_(columns: Iterable['Column']) -> None:
    """Move trainable alphas into their bounds, as an optimizer's step may have moved them out.

    All at once: one by one, they would take a GPU's host as long as some blocks.

    Args:
        columns: Columns of one model. Their alphas are changed in place, unseen by autograd; of an alpha that
            FSDP2 has sharded, this process's part.
    """
    alphas = [alpha for column in columns for alpha in column.alphas if alpha.requires_grad]
    if not alphas:
        return
    # `.data`: graphs that have saved an alpha stay usable.
    local = [getattr(alpha, 'to_local', lambda alpha=alpha: alpha)().data for alpha in alphas]
    bounded = bound_alpha(torch.cat([alpha.flatten() for alpha in local]))
    parts = bounded.split([alpha.numel() for alpha in local])
    torch._foreach_copy_(local, [part.view_as(alpha) for part, alpha in zip(parts, local)])


def _owns_alpha(level: nn.Module) -> bool:
    return getattr(level, 'owns_alpha', False)


class Column(nn.Module):
    """Levels 0, 1, ... of one column: ``c[l] <- level_l(...) + alpha_l * c[l]``, level 0 first.

    Args:
        levels: A module for each level. It takes what its level reads, and gives (B, C_l, H_l, W_l).
        reads: For each level what it reads, in order: indices of other levels, or None for the stem's output.
            Lower levels are read as this column has just computed them, higher ones as the last one left
            them.
        channels: Channels C_l of each level. Each has an alpha, 0.5 at first (RevCol official code), or the
            parameter ``alpha`` of the level itself, (1, C_l, 1, 1), if that has ``owns_alpha = True``.
    """

    def __init__(
        self, levels: Sequence[nn.Module], reads: Sequence[Sequence[int | None]], channels: Sequence[int]
    ) -> None:
        super().__init__()
        self.reads = [tuple(level_reads) for level_reads in reads]
        for index, (level, width) in enumerate(zip(levels, channels, strict=True)):
            if not _owns_alpha(level):  # the published names
                self.register_parameter(f'alpha{index}', nn.Parameter(torch.full((1, width, 1, 1), 0.5)))
            self.add_module(f'level{index}', level)

    @property
    def alphas(self) -> list[nn.Parameter]:
        """Those of each level, (1, C_l, 1, 1)."""
        levels = [getattr(self, f'level{level}') for level in range(len(self.reads))]
        return [
            level.alpha if _owns_alpha(level) else getattr(self, f'alpha{index}')
            for index, level in enumerate(levels)
        ]

    def couplings(self) -> list[Coupling]:
        """The column as a link of a reversible chain."""
        return [
            # Trainable ones have been bounded; published weights may be beyond.
            Coupling(
                level,
                reads,
                getattr(self, f'level{level}'),
                alpha if self._trains(alpha) else bound_alpha(alpha),
            )
            for level, (reads, alpha) in enumerate(zip(self.reads, self.alphas))
        ]

    def _trains(self, alpha: Tensor) -> bool:
        return self.training and alpha.requires_grad

    def forward(self, x: Tensor, features: Sequence[Tensor], run: Callable = couple) -> list[Tensor]:
        """From the previous column's features to this one's.

        Args:
            x: The stem's output, (B, C_0, H_0, W_0).
            features: The previous column's levels, (B, C_l, H_l, W_l); zeros before the first column.
            run: What runs the couplings: :func:`revcol_mm.ops.couple`, or a ReversibleChain.

        Returns:
            This column's levels, of the same shapes.
        """
        return run(self.couplings(), x, features)
