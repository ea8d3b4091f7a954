"""Stand-ins for modules that cannot be exported with free sizes: they compute the same with the same weights.

Letters: B batch, C channels, L levels, Q queries, P sampling points, S places of all levels together.
"""

import copy
from typing import Any, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from revcol_mm.mmcv_ops.deformable import attend_to_level


class MatrixPool2d(nn.Module):
    """nn.AdaptiveAvgPool2d as two matrix products: ONNX has no such pooling of images of any size.

    Args:
        pool: What it stands in for.
    """

    def __init__(self, pool: nn.AdaptiveAvgPool2d) -> None:
        super().__init__()
        size = pool.output_size
        self.output_size = tuple(size) if isinstance(size, (tuple, list)) else (size, size)

    @staticmethod
    def _averages(length: int, bins: int, x: Tensor) -> Tensor:
        """(bins, length): row i averages from floor(i * length / bins) to ceil((i + 1) * length / bins)."""
        bin_, place = torch.arange(bins, device=x.device)[:, None], torch.arange(length, device=x.device)
        inside = (place >= bin_ * length // bins) & (place < ((bin_ + 1) * length + bins - 1) // bins)
        inside = inside.to(x.dtype)
        return inside / inside.sum(1, keepdim=True)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H', W')."""
        height, width = self.output_size
        return self._averages(x.shape[2], height, x) @ x @ self._averages(x.shape[3], width, x).T


class DeformableAttention(nn.Module):
    """MMCV's MultiScaleDeformableAttention, with the sizes of levels as numbers instead of a tensor.

    Args:
        attention: What it stands in for.
    """

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        if not attention.batch_first:
            raise ValueError('MultiScaleDeformableAttention is exported with batch_first=True alone')
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
            value: (B, S, C); None: the query.
            identity: What is added to the result; None: the query.
            query_pos: Positions that are added to the query.
            reference_points: (B, Q, L, 2), or 4 with width and height, from 0 to 1.
            spatial_shapes: Height and width of every level.
            unused: Masks and start indices, of which there is no need where images are not padded.
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
        output = 0
        for level, (height, width) in enumerate(spatial_shapes):
            reference, offset = reference_points[:, :, None, level, None], offsets[:, :, :, level]
            if reference.shape[-1] == 2:
                offset = torch.stack([offset[..., 0] / width, offset[..., 1] / height], -1)
            else:
                offset = offset / attention.num_points * reference[..., 2:] * 0.5
            locations = reference[..., :2] + offset
            output = output + attend_to_level(
                values[level], height, width, locations, weights[:, :, :, level]
            )
        return attention.dropout(attention.output_proj(output)) + identity


class PixelDecoder(nn.Module):
    """MMDetection's MSDeformAttnPixelDecoder, with the sizes of levels as numbers instead of a tensor.

    Args:
        decoder: What it stands in for.
    """

    def __init__(self, decoder: nn.Module) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, feats: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Features of every level, (B, C_l, H_l, W_l) -> the mask feature, and levels for the queries."""
        decoder = self.decoder
        number = decoder.num_encoder_levels
        coarsest_first = feats[: -number - 1 : -1]
        maps = [project(feat) for project, feat in zip(decoder.input_convs, coarsest_first)]
        positions = [
            decoder.postional_encoding(None, input=feat) + embedding[:, None, None]
            for feat, embedding in zip(coarsest_first, decoder.level_encoding.weight)
        ]
        memory, sizes = encode(decoder.encoder.layers, maps, positions)
        outputs = [
            part.transpose(1, 2).unflatten(2, size)
            for part, size in zip(memory.split([height * width for height, width in sizes], 1), sizes)
        ]
        finer = decoder.num_input_levels - number
        for level in reversed(range(finer)):
            lateral = decoder.lateral_convs[level](feats[level])
            size = lateral.shape[-2:]
            above = F.interpolate(outputs[-1], size=size, mode='bilinear', align_corners=False)
            outputs.append(decoder.output_convs[level](lateral + above))
        return decoder.mask_feature(outputs[-1]), outputs[: decoder.num_outs]


def encode(
    layers: Sequence[nn.Module], maps: Sequence[Tensor], positions: Sequence[Tensor]
) -> tuple[Tensor, list[tuple[int, int]]]:
    """Run layers of deformable self-attention over levels that are not padded.

    Args:
        layers: They hold a :class:`DeformableAttention` each.
        maps: Of every level, (B, C, H_l, W_l).
        positions: What is added to them as queries.

    Returns:
        (B, S, C), and height and width of every level.
    """
    sizes = [(feature.shape[-2], feature.shape[-1]) for feature in maps]
    memory, position = (
        torch.cat([each.flatten(2).transpose(1, 2) for each in tensors], 1) for tensors in (maps, positions)
    )
    references = torch.cat([centres(*size, memory) for size in sizes])[None, :, None]
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


def centres(height: int, width: int, like: Tensor) -> Tensor:
    """Centres of a map's pixels, (H * W, 2), x and y from 0 to 1."""
    y, x = (
        (torch.arange(side, dtype=like.dtype, device=like.device) + 0.5) / side for side in (height, width)
    )
    return torch.stack([x[None].expand(height, width), y[:, None].expand(height, width)], -1).flatten(0, 1)


STAND_INS = {
    'AdaptiveAvgPool2d': MatrixPool2d,
    'MultiScaleDeformableAttention': DeformableAttention,
    'MSDeformAttnPixelDecoder': PixelDecoder,
}


def exportable(module: nn.Module) -> nn.Module:
    """A copy of a module with the same tensors, and stand-ins for what cannot be exported."""
    tensors = (*module.parameters(), *module.buffers())
    module = copy.deepcopy(module, {id(tensor): tensor for tensor in tensors})
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if type(child).__name__ in STAND_INS:
                setattr(parent, name, STAND_INS[type(child).__name__](child))
    return module
