"""Parts of existing networks that compute on tokens or channels-last maps, as modules of feature maps.

Letters: B batch, C channels, H and W height and width.
"""

from functools import partial
from typing import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from revcol_mm.any_module import AnyModule


class TokenStage(nn.Module):
    """A transformer stage that computes on tokens, (B, H * W, C), with feature maps as input and output.

    Args:
        embed: Downsampling to tokens and their (H, W). None: no downsampling.
        blocks: Blocks that take tokens and their (H, W).
        norm: Norm after the last block, whose output is passed on to the next stage.
        embeds_map: Whether ``embed`` takes a feature map. Otherwise it takes tokens and their (H, W).
        position: Position encoding after the first block; takes tokens and their (H, W).
        dropout: Dropout of the embedded tokens.
    """

    def __init__(
        self,
        embed: nn.Module | None,
        blocks: Sequence[nn.Module],
        norm: nn.Module | None = None,
        embeds_map: bool = False,
        position: nn.Module | None = None,
        dropout: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.embed, self.norm, self.position, self.embeds_map = embed, norm, position, embeds_map
        self.dropout = dropout or nn.Identity()
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H', W')."""
        size = x.shape[-2:]
        if not self.embeds_map:
            x = x.flatten(2).transpose(1, 2)
        if self.embed is not None:
            x, size = self.embed(x) if self.embeds_map else self.embed(x, size)
        x = self.dropout(x)
        for index, block in enumerate(self.blocks):
            x = block(x, size)
            if index == 0 and self.position is not None:
                x = self.position(x, size)
        if self.norm is not None:
            x = self.norm(x)
        return x.transpose(1, 2).unflatten(2, tuple(size))


class TokenStem(nn.Module):
    """The patch embedding of a transformer, from images to a feature map."""

    def __init__(self, embed: nn.Module, dropout: nn.Module) -> None:
        super().__init__()
        self.embed, self.dropout = embed, dropout

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C_0, H / s_0, W / s_0)."""
        x, size = self.embed(images)
        return self.dropout(x).transpose(1, 2).unflatten(2, tuple(size))


class TokenNorm(nn.Module):
    """A norm of tokens, applied to a feature map."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same shape."""
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ChannelsLast(nn.Module):
    """A layer that computes on (B, H, W, C), with feature maps as input and output.

    Args:
        layer: The layer.
        takes_images: Whether its input is nevertheless (B, C, H, W).
    """

    def __init__(self, layer: nn.Module, takes_images: bool) -> None:
        super().__init__()
        self.layer, self.takes_images = layer, takes_images

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H', W')."""
        return self.layer(x if self.takes_images else x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def _to_map(tokens: Tensor, num_extra: int, size: Sequence[int]) -> Tensor:
    """Convert tokens, (B, num_extra + H * W, C), to a map with an additional last row for the extra tokens.

    Returns:
        (B, C, H + 1, W); the rest of the last row is zero.
    """
    extra, patches = tokens[:, :num_extra], tokens[:, num_extra:]
    row = F.pad(extra, (0, 0, 0, size[1] - num_extra))
    return torch.cat([patches, row], 1).transpose(1, 2).unflatten(2, (size[0] + 1, size[1]))


def _to_tokens(x: Tensor, num_extra: int) -> Tensor:
    """Invert :func:`_to_map`."""
    tokens, width = x.flatten(2).transpose(1, 2), x.shape[-1]
    return torch.cat([tokens[:, -width:][:, :num_extra], tokens[:, :-width]], 1)


class VitStem(nn.Module):
    """The part of MMPretrain's VisionTransformer before its first layer."""

    def __init__(self, net: AnyModule) -> None:
        super().__init__()
        self.embed, self.cls_token, self.pos_embed = net.patch_embed, net.cls_token, net.pos_embed
        self.dropout, self.norm, self.num_extra = net.drop_after_pos, net.pre_norm, net.num_extra_tokens
        self.resize = partial(
            net.resize_pos_embed,
            src_shape=net.patch_resolution,
            mode=net.interpolate_mode,
            num_extra_tokens=net.num_extra_tokens,
        )

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, C, H / s + 1, W / s), with the class token in the last row."""
        x, size = self.embed(images)
        if self.cls_token is not None:
            x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1)
        x = self.dropout(x + self.resize(self.pos_embed, dst_shape=size))
        return _to_map(self.norm(x), self.num_extra, size)


class VitStage(nn.Module):
    """Consecutive layers of a VisionTransformer and, if given, a norm after them."""

    def __init__(self, layers: Sequence[nn.Module], norm: nn.Module | None, num_extra: int) -> None:
        super().__init__()
        self.layers, self.norm, self.num_extra = nn.Sequential(*layers), norm, num_extra

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H + 1, W) -> the same shape."""
        tokens = self.layers(_to_tokens(x, self.num_extra))
        if self.norm is not None:
            tokens = self.norm(tokens)
        return _to_map(tokens, self.num_extra, (x.shape[-2] - 1, x.shape[-1]))


class WithoutLastRow(nn.Module):
    """Removes the row of extra tokens."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H + 1, W) -> (B, C, H, W)."""
        return x[:, :, :-1]
