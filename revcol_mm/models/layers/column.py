"""One column of RevCol: a sub-network of levels, tied to the column before by reversible couplings."""

from typing import Sequence

import torch
from torch import Tensor, nn

from revcol_mm.ops import Chain, Coupling, bound_alpha, couple

from .convnext_block import ConvNeXtBlock
from .level_fusion import LevelFusion


class Level(nn.Module):
    """``F`` of the reversible coupling: fusion, then ConvNeXt blocks.

    Args:
        fusion: Joins the inputs of the level.
        blocks: The blocks that follow.
    """

    def __init__(self, fusion: LevelFusion, blocks: Sequence[ConvNeXtBlock]) -> None:
        super().__init__()
        self.fusion = fusion
        self.blocks = nn.Sequential(*blocks)

    def forward(self, below: Tensor, *above: Tensor) -> Tensor:
        """Inputs and output as in :class:`LevelFusion`."""
        return self.blocks(self.fusion(below, *above))


class Column(nn.Module):
    """Levels 0, 1, ... of one column: ``c[l] <- level_l(c[l-1], c[l+1], ...) + alpha_l * c[l]``.

    A level reads the level below in this column (level 0: the stem's output) and, except in the first
    column, the levels above as the previous column left them.

    Args:
        channels: Channels C_l of each level.
        layers: Number of ConvNeXt blocks of each level.
        kernel_size: Size of the depthwise convolutions.
        first: Whether this is the first column, which has no levels above to read.
        level_connection: 'standard', or 'huge', where level 0 also reads the last level.
        drop_path_rates: Stochastic-depth rate of each of the ``sum(layers)`` blocks.
        layer_scale_init_value: Initial value of the blocks' layer scale.
    """

    def __init__(
        self,
        channels: Sequence[int],
        layers: Sequence[int],
        kernel_size: int,
        first: bool,
        level_connection: str,
        drop_path_rates: Sequence[float],
        layer_scale_init_value: float,
    ) -> None:
        super().__init__()
        last_level = len(channels) - 1
        drop_path_rates = iter(drop_path_rates)
        self.reads = []
        for level, width in enumerate(channels):
            below = level - 1 if level > 0 else None
            above = [level + 1] if level < last_level and not first else []
            if level == 0 and above and level_connection == 'huge':
                above.append(last_level)
            self.reads.append((below, *above))

            alpha = nn.Parameter(torch.full((1, width, 1, 1), 0.5))  # RevCol official code: 0.5
            self.register_parameter(f'alpha{level}', alpha)
            fusion = LevelFusion(
                None if below is None else channels[below], width, [channels[i] for i in above]
            )
            blocks = [
                ConvNeXtBlock(
                    width,
                    kernel_size,
                    drop_path_rate=next(drop_path_rates),
                    layer_scale_init_value=layer_scale_init_value,
                )
                for _ in range(layers[level])
            ]
            self.add_module(f'level{level}', Level(fusion, blocks))

    def couplings(self) -> list[Coupling]:
        """The column as a chain of reversible couplings, level 0 first."""
        return [
            Coupling(level, reads, getattr(self, f'level{level}'), self._alpha(level))
            for level, reads in enumerate(self.reads)
        ]

    def _alpha(self, level: int) -> Tensor:
        """Alpha of a level, kept away from 0 as published.

        The parameter itself is moved only where it is being trained; evaluation, export and frozen
        columns bound the value that is used.
        """
        alpha = getattr(self, f'alpha{level}')
        if self.training and alpha.requires_grad:
            with torch.no_grad():  # `.data`: alphas that earlier graphs have saved stay usable
                alpha.data.copy_(bound_alpha(alpha))
            return alpha
        return bound_alpha(alpha)

    def forward(self, x: Tensor, features: Sequence[Tensor], chain: Chain | None = None) -> list[Tensor]:
        """From the previous column's features to this one's.

        Args:
            x: The stem's output, (B, C_0, H_0, W_0).
            features: The previous column's levels, (B, C_l, H_l, W_l); zeros before the first column.
            chain: What this column is the next link of, in training. None: it is on its own.

        Returns:
            This column's levels, of the same shapes.
        """
        return (chain or couple)(self.couplings(), x, features)
