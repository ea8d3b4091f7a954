"""Decoders that rebuild the image from a column's level, and their loss, for intermediate supervision.

RevCol official code, `models/modules.py` and `loss.py`; parameter names are the published ones.
"""

from typing import Sequence

import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .convnext_block import ConvNeXtBlock
from .layer_norm import LayerNorm2d


class LevelwiseDecoder(nn.Module):
    """Climbs down the levels: in each stage to the width and the size of the next finer level.

    Args:
        channels: Channels C_l of every level, level 0, whose stride is 4, first. The input is the last.
        image_channels: Channels c of the image.
    """

    def __init__(self, channels: Sequence[int], image_channels: int = 3) -> None:
        super().__init__()
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
            nn.Conv2d(channels[0], image_channels * 4**2, kernel_size=1), nn.PixelShuffle(4)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_last, h, w) -> (B, c, stride * h, stride * w), stride that of the last level; logits."""
        for project, blocks in zip(self.proj_layers, self.normal_layers):
            x = F.interpolate(project(x), scale_factor=2, mode='bilinear', align_corners=True)
            x = blocks(x)
        return self.projback(x)


class PixelShuffleDecoder(nn.Module):
    """Predicts at every position the patch of the image that it stands for.

    Args:
        in_channels: Channels C of the level.
        stride: The level's stride, which is the size of a patch.
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
        """(B, C, h, w) -> (B, c, stride * h, stride * w); logits."""
        return self.projback(x)


def reconstruction_loss(
    decoder: nn.Module, feature: Tensor, inputs: Tensor, data_preprocessor: nn.Module, recompute: bool
) -> Tensor:
    """Binary cross entropy between the decoded image and what the network saw, a scalar.

    Args:
        decoder: One of the decoders above.
        feature: (B, C, h, w).
        inputs: Normalised images, (B, c, H, W). A level's size is rounded down: up to stride - 1 rows and
            columns, at the bottom and on the right, have no counterpart in it and are left out.
        data_preprocessor: Its ``mean`` and ``std``, in 0 to 255, turn inputs back into images.
        recompute: Decode again in backward instead of storing what decoding computes.
    """

    def compare(feature: Tensor) -> Tensor:
        decoded = decoder(feature)
        seen = inputs[..., : decoded.shape[-2], : decoded.shape[-1]]
        image = (seen * data_preprocessor.std + data_preprocessor.mean) / 255
        # RevCol official code: targets of 0 and 1 would ask for infinite logits
        return F.binary_cross_entropy_with_logits(decoded, image.clamp(0.01, 0.99))

    if not recompute:
        return compare(feature)
    return checkpoint(compare, feature, use_reentrant=False, preserve_rng_state=False)
