"""A column: a sub-network with several levels, connected to the previous column by reversible couplings."""

from typing import Any, Callable, Iterable, Sequence, cast

import torch
from torch import Tensor, nn

from revcol_mm.ops import Coupling, couple

MIN_ABS_ALPHA = 1e-3  # RevCol official code, `SubNet.forward`: the inverse divides by alpha


def bound_alpha(alpha: Tensor) -> Tensor:
    """Return the value nearest to ``alpha`` with ``|alpha| >= 1e-3``; zero becomes ``+1e-3``."""
    return torch.where(alpha < 0, alpha.clamp(max=-MIN_ABS_ALPHA), alpha.clamp(min=MIN_ABS_ALPHA))


@torch.no_grad()
def bound_alphas_(columns: Iterable['Column']) -> None:
    """Bound the alphas in place: an optimizer step may have moved them too close to zero.

    Args:
        columns: Columns of one model; those in evaluation mode are left out. The update is invisible to
            autograd. For alphas sharded by FSDP2, only the local shard is updated.
    """
    alphas = [alpha for column in columns if column.training for alpha in column.alphas]
    if not alphas:
        return
    # `.data`: autograd graphs that have saved an alpha stay valid.
    local = [(alpha.to_local() if hasattr(alpha, 'to_local') else alpha).data for alpha in alphas]
    # One batched update: launching kernels for every alpha takes a GPU's host as long as running some blocks.
    bounded = bound_alpha(torch.cat([alpha.flatten() for alpha in local]))
    parts = bounded.split([alpha.numel() for alpha in local])
    torch._foreach_copy_(local, [part.view_as(alpha) for part, alpha in zip(parts, local)])


@torch.no_grad()
def as_links(columns: Iterable['Column']) -> list[list[Coupling]]:
    """Return the columns as the links that a reversible chain reads the alphas of.

    Alphas sharded by FSDP2 are gathered, all in one transfer. There are no links if they are not all sharded
    alike; the chain then reads those of one column at a time.
    """
    links = [column.couplings() for column in columns]
    alphas: list[Any] = [coupling.alpha for link in links for coupling in link]
    if not any(hasattr(alpha, 'placements') for alpha in alphas):
        return links
    layouts = {(getattr(a, 'device_mesh', None), getattr(a, 'placements', ())) for a in alphas}
    mesh, placements = next(iter(layouts))
    if len(layouts) > 1 or any(place.is_shard() and place.dim != 0 for place in placements):
        return []
    from torch.distributed.tensor import DTensor, Partial  # torch may be built without distributed

    # Dimension 0 has size 1: one process holds the whole alpha, and the shards of the others are empty.
    local = torch.cat([alpha.to_local().sum(0, keepdim=True) for alpha in alphas], 1)
    places = [Partial() if place.is_shard() else place for place in placements]
    whole = DTensor.from_local(local, mesh, places).full_tensor()
    parts = iter(whole.split([alpha.shape[1] for alpha in alphas], 1))
    return [[coupling._replace(alpha=next(parts)) for coupling in link] for link in links]


def _owns_alpha(level: nn.Module) -> bool:
    return getattr(level, 'owns_alpha', False)


class Column(nn.Module):
    """Levels 0, 1, ... of one column: ``c[l] <- level_l(...) + alpha_l * c[l]``, level 0 first.

    Args:
        levels: One module per level, from the inputs of the level to (B, C_l, H_l, W_l).
        reads: For each level, its inputs in order: indices of other levels, or None for the stem's output.
            Lower levels are read from this column, higher levels from the previous one.
        channels: Channels C_l of each level. Every level has an alpha of shape (1, C_l, 1, 1), initialised to
            0.5 (RevCol official code). A level with ``owns_alpha = True`` uses its own parameter ``alpha``.
    """

    def __init__(
        self, levels: Sequence[nn.Module], reads: Sequence[Sequence[int | None]], channels: Sequence[int]
    ) -> None:
        super().__init__()
        self.reads = [tuple(level_reads) for level_reads in reads]
        for index, (level, width) in enumerate(zip(levels, channels, strict=True)):
            if not _owns_alpha(level):  # published parameter names
                self.register_parameter(f'alpha{index}', nn.Parameter(torch.full((1, width, 1, 1), 0.5)))
            self.add_module(f'level{index}', level)

    @property
    def levels(self) -> list[nn.Module]:
        """The levels, level 0 first."""
        return [getattr(self, f'level{index}') for index in range(len(self.reads))]

    @property
    def alphas(self) -> list[nn.Parameter]:
        """The alpha of each level, (1, C_l, 1, 1)."""
        return [
            cast(nn.Parameter, level.alpha) if _owns_alpha(level) else getattr(self, f'alpha{index}')
            for index, level in enumerate(self.levels)
        ]

    def couplings(self) -> list[Coupling]:
        """Return the column as one link of a reversible chain."""
        return [
            # In training, `bound_alphas_` has bounded them. Published ones may be too small.
            Coupling(index, reads, level, alpha if self.training else bound_alpha(alpha))
            for index, (reads, level, alpha) in enumerate(zip(self.reads, self.levels, self.alphas))
        ]

    def forward(self, x: Tensor, features: Sequence[Tensor], run: Callable = couple) -> list[Tensor]:
        """Compute this column's features from the previous column's.

        Args:
            x: The stem's output, (B, C_0, H_0, W_0).
            features: The previous column's levels, (B, C_l, H_l, W_l); zeros for the first column.
            run: Runs the couplings: :func:`revcol_mm.ops.couple`, or a ReversibleChain.

        Returns:
            This column's levels, with the same shapes.
        """
        return run(self.couplings(), x, features)
