"""Joining the inputs of a level: the level below in the same column, levels above in the last one."""

from typing import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from .layer_norm import LayerNorm2d
from .pointwise_linear import PointwiseLinear


class Upsample(nn.Module):
    """Linear, LayerNorm, then nearest upsampling to a given size.

    Args:
        in_channels: Channels of the higher level.
        out_channels: Channels of the level to upsample to.
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

    Args:
        below_channels: Channels of the level below. None: there is none, the stem's output is passed on.
        channels: Channels of this level.
        above_channels: Channels of each higher level of the previous column that is read.
    """

    def __init__(self, below_channels: int | None, channels: int, above_channels: Sequence[int]) -> None:
        super().__init__()
        if below_channels is None:
            self.down = nn.Identity()
        else:
            self.down = nn.Sequential(
                nn.Conv2d(below_channels, channels, kernel_size=2, stride=2),
                LayerNorm2d(channels, eps=1e-6),
            )
        # Published names: `up` reads the next level; `up2`, in RevCol-H only, reads the last level.
        self.up_names = ('up', 'up2')[: len(above_channels)]
        for name, above in zip(self.up_names, above_channels):
            self.add_module(name, Upsample(above, channels))

    def forward(self, below: Tensor, *above: Tensor) -> Tensor:
        """(B, C_below, H, W) and any (B, C_above, h, w) -> (B, C, H', W').

        Sizes that are no multiple of 32 are rounded down on the way up the levels, so the upsampling
        goes to the lateral's size. Where they are, that is a factor of exactly 2 (or 8).
        """
        x = self.down(below)
        for name, feature in zip(self.up_names, above):
            x = x + getattr(self, name)(feature, x.shape[-2:])
        return x
