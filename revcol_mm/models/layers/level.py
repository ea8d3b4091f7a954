"""One level of a RevCol column, the function ``F`` of a coupling: a fusion of its inputs, then blocks."""

from typing import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from .convnext_block import ConvNeXtBlock
from .layer_norm import LayerNorm2d
from .pointwise_linear import PointwiseLinear


class Upsample(nn.Module):
    """Linear layer, LayerNorm, then nearest-neighbour upsampling to a given size.

    Args:
        in_channels: Channels of the higher level.
        out_channels: Channels of the lower level, to which the result is added.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.channel_reschedule = nn.Sequential(
            PointwiseLinear(in_channels, out_channels), nn.LayerNorm(out_channels, eps=1e-6)
        )

    def forward(self, x: Tensor, size: Sequence[int]) -> Tensor:
        """(B, in_channels, h, w) -> (B, out_channels, H, W), where ``size`` is (H, W)."""
        x = self.channel_reschedule(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return F.interpolate(x, size=size, mode='nearest')


class LevelFusion(nn.Module):
    """``down(below) + sum(up(c) for c in above)`` (RevCol, section 3.2.1 and figure 2c).

    The level below is in the same column, higher levels are in the previous column.

    Args:
        below_channels: Channels of the level below. None for level 0, which takes the stem's output as is.
        channels: Channels C of this level.
        above_channels: Channels of each higher level of the previous column that is read.
    """

    def __init__(self, below_channels: int | None, channels: int, above_channels: Sequence[int]) -> None:
        super().__init__()
        if below_channels is None:
            self.down: nn.Module = nn.Identity()
        else:
            self.down = nn.Sequential(
                nn.Conv2d(below_channels, channels, kernel_size=2, stride=2),
                LayerNorm2d(channels, eps=1e-6),
            )
        # Published names: `up` reads the next level; `up2`, only in RevCol-H, reads the last level.
        self.up_names = ('up', 'up2')[: len(above_channels)]
        for name, above in zip(self.up_names, above_channels):
            self.add_module(name, Upsample(above, channels))

    def forward(self, below: Tensor, *above: Tensor) -> Tensor:
        """(B, C_below, H, W) and any number of (B, C_above, h, w) -> (B, C, H', W').

        Higher levels are upsampled to the size of this one. The factor is exactly 2 (or 8 for ``up2``) if the
        image's sides are multiples of 32; otherwise sizes were rounded down on the way up the levels.
        """
        x = self.down(below)
        for name, feature in zip(self.up_names, above):
            x = x + getattr(self, name)(feature, x.shape[-2:])
        return x


class Level(nn.Module):
    """A fusion of the level's inputs, followed by ConvNeXt blocks."""

    def __init__(self, fusion: LevelFusion, blocks: Sequence[ConvNeXtBlock]) -> None:
        super().__init__()
        self.fusion = fusion
        self.blocks = nn.Sequential(*blocks)

    def forward(self, below: Tensor, *above: Tensor) -> Tensor:
        """Inputs and output as in :class:`LevelFusion`."""
        return self.blocks(self.fusion(below, *above))
