"""Levels of the columns that ReversibleColumns makes from a network: a stage of it, or new blocks."""

from typing import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .convnext_block import ConvNeXtBlock
from .layer_norm import LayerNorm2d
from .pointwise_linear import PointwiseLinear


class FromAbove(nn.Module):
    """LayerNorm, a linear layer initialised to zero, then nearest-neighbour upsampling.

    Args:
        in_channels: Channels of the higher level.
        out_channels: Channels of the feature to which the result is added.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm = LayerNorm2d(in_channels, eps=1e-6)
        self.linear = PointwiseLinear(in_channels, out_channels)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: Tensor, size: Sequence[int]) -> Tensor:
        """(B, in_channels, h, w) -> (B, out_channels, H, W), where ``size`` is (H, W)."""
        x = self.linear(self.norm(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return F.interpolate(x, size=size, mode='nearest')


class StageLevel(nn.Module):
    """``(1 - alpha) * stage(below + from_above(above))``, a level of a column after the first.

    The column adds ``alpha`` times the same level of the previous column. If that equals the output of
    ``stage`` and ``from_above`` is zero, the sum is the output of ``stage`` for any alpha.

    Args:
        stage: A stage of the network.
        in_channels: Input channels of the stage.
        channels: Output channels C_l of the stage.
        above_channels: Channels of the next higher level in the previous column. None: no such level.
    """

    owns_alpha = True  # forward needs alpha

    def __init__(self, stage: nn.Module, in_channels: int, channels: int, above_channels: int | None) -> None:
        super().__init__()
        self.stage = stage
        self.from_above = None if above_channels is None else FromAbove(above_channels, in_channels)
        self.alpha = nn.Parameter(torch.full((1, channels, 1, 1), 0.5))

    def forward(self, below: Tensor, *above: Tensor) -> Tensor:
        """(B, in_channels, H, W) and, below the last level, (B, C_above, h, w) -> (B, C_l, H_l, W_l)."""
        if self.from_above is not None:
            below = below + self.from_above(*above, below.shape[-2:])
        return (1 - self.alpha) * self.stage(below)


class LightLevel(nn.Module):
    """ConvNeXt blocks on the levels below and above, scaled by a gain of initially zero.

    Args:
        in_channels: Channels of the level below.
        channels: Output channels C_l.
        stride: Stride relative to the level below.
        above_channels: Channels of the next higher level in the previous column. None: no such level.
        num_blocks: Number of ConvNeXt blocks.
    """

    owns_alpha = True  # initialised to 1, so the level starts as a copy of the previous column's

    def __init__(
        self, in_channels: int, channels: int, stride: int, above_channels: int | None, num_blocks: int
    ) -> None:
        super().__init__()
        self.down = nn.Sequential(
            LayerNorm2d(in_channels, eps=1e-6), nn.Conv2d(in_channels, channels, stride, stride)
        )
        self.from_above = None if above_channels is None else FromAbove(above_channels, channels)
        self.blocks = nn.Sequential(
            *(ConvNeXtBlock(channels, kernel_size=7, layer_scale_init_value=1.0) for _ in range(num_blocks))
        )
        self.alpha = nn.Parameter(torch.ones(1, channels, 1, 1))
        self.gain = nn.Parameter(torch.zeros(1, channels, 1, 1))

    def forward(self, below: Tensor, *above: Tensor) -> Tensor:
        """(B, in_channels, H, W) and, below the last level, (B, C_above, h, w) -> (B, C_l, H_l, W_l)."""
        x = self.down(below)
        if self.from_above is not None:
            x = x + self.from_above(*above, x.shape[-2:])
        return self.gain * self.blocks(x)
