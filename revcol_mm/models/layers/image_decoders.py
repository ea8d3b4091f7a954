"""Decoders that reconstruct the image from one level of a column, for intermediate supervision.

RevCol official code, `models/modules.py`; parameter names are the published ones.
"""

import itertools
from typing import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from .convnext_block import ConvNeXtBlock
from .layer_norm import LayerNorm2d


class LevelwiseDecoder(nn.Module):
    """Upsample level by level: each stage goes to the width and size of the next finer level.

    Args:
        channels: Channels C_l of every level, starting with level 0. The input is the last level.
        strides: Stride of every level.
        image_channels: Channels c of the image.

    Raises:
        ValueError: If a stride is not a multiple of the previous one.
    """

    def __init__(self, channels: Sequence[int], strides: Sequence[int], image_channels: int = 3) -> None:
        super().__init__()
        if any(higher % lower for lower, higher in itertools.pairwise(strides)):
            raise ValueError(
                'reconstructing the image level by level needs strides that are multiples of the one before, '
                f'got {strides}'
            )
        self.factors = [higher // lower for lower, higher in itertools.pairwise(strides)][::-1]
        self.proj_layers = nn.ModuleList()
        self.normal_layers = nn.ModuleList()
        for level in reversed(range(len(channels) - 1)):
            width = channels[level]
            self.proj_layers.append(
                nn.Sequential(
                    nn.Conv2d(channels[level + 1], width, kernel_size=1),
                    LayerNorm2d(width, eps=1e-6),
                    nn.GELU(),
                )
            )
            self.normal_layers.append(nn.Sequential(ConvNeXtBlock(width, kernel_size=3, expansion=1)))
        self.projback = nn.Sequential(
            nn.Conv2d(channels[0], image_channels * strides[0] ** 2, kernel_size=1),
            nn.PixelShuffle(strides[0]),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_last, h, w) -> logits (B, c, stride * h, stride * w), with the stride of the last level."""
        for project, blocks, factor in zip(self.proj_layers, self.normal_layers, self.factors):
            x = F.interpolate(project(x), scale_factor=factor, mode='bilinear', align_corners=True)
            x = blocks(x)
        return self.projback(x)


class PixelShuffleDecoder(nn.Module):
    """Predict the image patch at every position of the feature map with one linear layer.

    Args:
        in_channels: Channels C of the level.
        stride: Stride of the level, which is the patch size.
        image_channels: Channels c of the image.
    """

    def __init__(self, in_channels: int, stride: int, image_channels: int = 3) -> None:
        super().__init__()
        self.projback = nn.Sequential(
            LayerNorm2d(in_channels, eps=1e-6),
            nn.Conv2d(in_channels, image_channels * stride**2, kernel_size=1),
            nn.PixelShuffle(stride),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> logits (B, c, stride * h, stride * w)."""
        return self.projback(x)
