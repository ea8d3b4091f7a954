"""Replacements for modules that cannot be exported with dynamic image sizes.

Each one computes the same values as the module it replaces, with the same weights.

Shapes: B batch, C channels, L levels, Q queries, S pixels of all levels together.
"""

import copy
from typing import Any, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from revcol_mm.any_module import AnyModule
from revcol_mm.mmcv_ops.deformable import attend_to_level


class MatrixPool2d(nn.Module):
    """Adaptive average pooling as two matrix products, because ONNX has no adaptive pooling of dynamic sizes.

    Args:
        pool: The module to replace.
    """

    def __init__(self, pool: nn.AdaptiveAvgPool2d) -> None:
        super().__init__()
        size = pool.output_size
        self.output_size = tuple(size) if isinstance(size, (tuple, list)) else (size, size)

    @staticmethod
    def _averaging_matrix(length: int, bins: int, like: Tensor) -> Tensor:
        """(bins, length): row i averages from floor(i * length / bins) to ceil((i + 1) * length / bins)."""
        bin_, place = (
            torch.arange(bins, device=like.device)[:, None],
            torch.arange(length, device=like.device),
        )
        inside = (place >= bin_ * length // bins) & (place < ((bin_ + 1) * length + bins - 1) // bins)
        inside = inside.to(like.dtype)
        return inside / inside.sum(1, keepdim=True)

    def forward(self, x: Tensor) -> Tensor:
        """Pool (B, C, H, W) to (B, C, output_size[0], output_size[1])."""
        rows, columns = (
            self._averaging_matrix(length, bins, x) for length, bins in zip(x.shape[2:], self.output_size)
        )
        return rows @ x @ columns.T


class DeformableAttention(nn.Module):
    """MMCV's MultiScaleDeformableAttention with the sizes of the levels as integers instead of a tensor.

    Args:
        attention: The module to replace.

    Raises:
        ValueError: If it is not ``batch_first``.
    """

    def __init__(self, attention: AnyModule) -> None:
        super().__init__()
        if not attention.batch_first:
            raise ValueError('MultiScaleDeformableAttention can be exported only with batch_first=True')
        self.attention = attention

    def forward(
        self,
        query: Tensor,
        key: Tensor | None = None,
        value: Tensor | None = None,
        identity: Tensor | None = None,
        query_pos: Tensor | None = None,
        reference_points: Tensor | None = None,
        spatial_shapes: Sequence[tuple[int, int]] = (),
        **unused: Any,
    ) -> Tensor:
        """Attend to all levels.

        Args:
            query: (B, Q, C).
            key: Not used.
            value: (B, S, C). None: the query.
            identity: Added to the result, (B, Q, C). None: the query.
            query_pos: Positional encoding that is added to the query.
            reference_points: (B, Q, L, 2), or (B, Q, L, 4) with width and height, from 0 to 1.
            spatial_shapes: Height and width of every level.
            unused: Padding masks and level start indices, not needed because images are not padded.

        Returns:
            (B, Q, C).
        """
        attention = self.attention
        value = query if value is None else value
        identity = query if identity is None else identity
        query = query if query_pos is None else query + query_pos
        value = attention.value_proj(value).unflatten(-1, (attention.num_heads, -1))
        per_point = attention.num_heads, attention.num_levels, attention.num_points
        offsets = attention.sampling_offsets(query).unflatten(-1, (*per_point, 2))
        weights = attention.attention_weights(query).unflatten(-1, (attention.num_heads, -1)).softmax(-1)
        weights = weights.unflatten(-1, per_point[1:])
        values = value.split([height * width for height, width in spatial_shapes], 1)
        output: Tensor | int = 0
        for level, (height, width) in enumerate(spatial_shapes):
            reference, offset = reference_points[:, :, None, level, None], offsets[:, :, :, level]
            if reference.shape[-1] == 2:
                offset = torch.stack([offset[..., 0] / width, offset[..., 1] / height], -1)
            else:
                offset = offset / attention.num_points * reference[..., 2:] * 0.5
            locations = reference[..., :2] + offset
            output = output + attend_to_level(
                (height, width), values[level], locations, weights[:, :, :, level]
            )
        return attention.dropout(attention.output_proj(output)) + identity


class PixelDecoder(nn.Module):
    """MMDetection's MSDeformAttnPixelDecoder with the sizes of the levels as integers instead of a tensor.

    Args:
        decoder: The module to replace.
    """

    def __init__(self, decoder: AnyModule) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, feats: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Turn features of all levels, (B, C_l, H_l, W_l), into the mask feature and the decoder's levels."""
        decoder = self.decoder
        number = decoder.num_encoder_levels
        coarsest_first = feats[: -number - 1 : -1]
        maps = [project(feat) for project, feat in zip(decoder.input_convs, coarsest_first)]
        positions = [
            decoder.postional_encoding(None, input=feat) + embedding[:, None, None]  # sic, in MMDetection
            for feat, embedding in zip(coarsest_first, decoder.level_encoding.weight)
        ]
        memory, sizes = run_encoder(decoder.encoder.layers, maps, positions)
        outputs = [
            part.transpose(1, 2).unflatten(2, size)
            for part, size in zip(memory.split([height * width for height, width in sizes], 1), sizes)
        ]
        for level in reversed(range(decoder.num_input_levels - number)):
            lateral = decoder.lateral_convs[level](feats[level])
            above = F.interpolate(outputs[-1], lateral.shape[-2:], mode='bilinear', align_corners=False)
            outputs.append(decoder.output_convs[level](lateral + above))
        return decoder.mask_feature(outputs[-1]), outputs[: decoder.num_outs]


def run_encoder(
    layers: Sequence[AnyModule], maps: Sequence[Tensor], positions: Sequence[Tensor]
) -> tuple[Tensor, list[tuple[int, int]]]:
    """Run a deformable encoder on the levels of images that are not padded.

    Args:
        layers: Encoder layers, whose self-attention is a :class:`DeformableAttention`.
        maps: Features of every level, (B, C, H_l, W_l).
        positions: Positional encoding of every level, of the same shape.

    Returns:
        Encoded features, (B, S, C), and height and width of every level.
    """
    sizes = [(feature.shape[-2], feature.shape[-1]) for feature in maps]
    memory, position = (
        torch.cat([each.flatten(2).transpose(1, 2) for each in tensors], 1) for tensors in (maps, positions)
    )
    references = torch.cat([pixel_centres(*size, memory) for size in sizes])[None, :, None]
    references = references.expand(memory.shape[0], -1, len(sizes), -1)
    for layer in layers:
        memory = layer(
            query=memory,
            query_pos=position,
            key_padding_mask=None,
            reference_points=references,
            spatial_shapes=sizes,
        )
    return memory, sizes


def pixel_centres(height: int, width: int, like: Tensor) -> Tensor:
    """Return x and y of the centres of a map's pixels, (height * width, 2), from 0 to 1, row by row."""
    y, x = (
        (torch.arange(side, dtype=like.dtype, device=like.device) + 0.5) / side for side in (height, width)
    )
    return torch.stack([x[None].expand(height, width), y[:, None].expand(height, width)], -1).flatten(0, 1)


REPLACEMENTS = {
    'AdaptiveAvgPool2d': MatrixPool2d,
    'MultiScaleDeformableAttention': DeformableAttention,
    'MSDeformAttnPixelDecoder': PixelDecoder,
}


def exportable(module: AnyModule) -> AnyModule:
    """Return a copy of a module that shares its tensors and has its submodules of REPLACEMENTS replaced."""
    tensors = (*module.parameters(), *module.buffers())
    module = copy.deepcopy(module, {id(tensor): tensor for tensor in tensors})
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if replacement := REPLACEMENTS.get(type(child).__name__):
                setattr(parent, name, replacement(child))
    return module
