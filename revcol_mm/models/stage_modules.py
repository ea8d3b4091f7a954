"""Parts of ready-made networks that compute on tokens or channels last, as modules of feature maps.

Letters: B batch, C channels, H and W height and width.
"""

from functools import partial
from typing import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class TokenStage(nn.Module):
    """A stage of a transformer that computes on tokens, (B, H * W, C), between feature maps.

    Args:
        embed: Downsampling: a map, or tokens and their (H, W), to tokens and their (H, W).
        blocks: The blocks, of tokens and their (H, W).
        norm: What follows the last block and is passed on.
        embeds_map: Whether ``embed`` takes a map.
        position: Takes tokens and their (H, W) behind the first block.
    """

    def __init__(
        self,
        embed: nn.Module | None,
        blocks: Sequence[nn.Module],
        norm: nn.Module | None = None,
        embeds_map: bool = False,
        position: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.embed, self.norm, self.position, self.embeds_map = embed, norm, position, embeds_map
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H', W')."""
        size = x.shape[-2:]
        if not self.embeds_map:
            x = x.flatten(2).transpose(1, 2)
        if self.embed is not None:
            x, size = self.embed(x) if self.embeds_map else self.embed(x, size)
        for index, block in enumerate(self.blocks):
            x = block(x, size)
            if index == 0 and self.position is not None:
                x = self.position(x, size)
        if self.norm is not None:
            x = self.norm(x)
        return x.transpose(1, 2).unflatten(2, tuple(size))


class TokenStem(nn.Module):
    """Patch embedding of a transformer, from images to a feature map."""

    def __init__(self, embed: nn.Module, dropout: nn.Module) -> None:
        super().__init__()
        self.embed, self.dropout = embed, dropout

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C_0, H / s_0, W / s_0)."""
        x, size = self.embed(images)
        return self.dropout(x).transpose(1, 2).unflatten(2, tuple(size))


class TokenNorm(nn.Module):
    """A norm of tokens, on a feature map."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same."""
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ChannelsLast(nn.Module):
    """A layer of (B, H, W, C), on feature maps.

    Args:
        layer: It.
        takes_images: Whether its input is (B, C, H, W) all the same.
    """

    def __init__(self, layer: nn.Module, takes_images: bool) -> None:
        super().__init__()
        self.layer, self.takes_images = layer, takes_images

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H', W')."""
        return self.layer(x if self.takes_images else x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def _to_map(tokens: Tensor, num_extra: int, size: Sequence[int]) -> Tensor:
    """Tokens, (B, num_extra + H * W, C), of which the first are no patches, as a map with one row more.

    Returns:
        (B, C, H + 1, W); what is left of the last row is zero.
    """
    extra, patches = tokens[:, :num_extra], tokens[:, num_extra:]
    row = F.pad(extra, (0, 0, 0, size[1] - num_extra))
    return torch.cat([patches, row], 1).transpose(1, 2).unflatten(2, (size[0] + 1, size[1]))


def _to_tokens(x: Tensor, num_extra: int) -> Tensor:
    """Undo :func:`_to_map`."""
    tokens, width = x.flatten(2).transpose(1, 2), x.shape[-1]
    return torch.cat([tokens[:, -width:][:, :num_extra], tokens[:, :-width]], 1)


class VitStem(nn.Module):
    """MMPretrain's VisionTransformer before its first layer."""

    def __init__(self, net: nn.Module) -> None:
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
        """(B, 3, H, W) -> (B, C, H / s + 1, W / s), the last row of which has the class token."""
        x, size = self.embed(images)
        if self.cls_token is not None:
            x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1)
        x = self.dropout(x + self.resize(self.pos_embed, dst_shape=size))
        return _to_map(self.norm(x), self.num_extra, size)


class VitStage(nn.Module):
    """Some of a VisionTransformer's layers, and the norm behind its last one."""

    def __init__(self, layers: Sequence[nn.Module], norm: nn.Module | None, num_extra: int) -> None:
        super().__init__()
        self.layers, self.norm, self.num_extra = nn.Sequential(*layers), norm, num_extra

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H + 1, W) -> the same."""
        tokens = self.layers(_to_tokens(x, self.num_extra))
        if self.norm is not None:
            tokens = self.norm(tokens)
        return _to_map(tokens, self.num_extra, (x.shape[-2] - 1, x.shape[-1]))


class WithoutLastRow(nn.Module):
    """Leaves the row of class tokens out."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H + 1, W) -> (B, C, H, W)."""
        return x[:, :, :-1]
