"""DINO as it is exported.

Shapes: B batch, C, H and W channels, height and width of the images, N boxes, Q queries, S pixels of all
    levels.
"""

from typing import Sequence

import torch
from torch import Tensor

from revcol_mm.any_module import AnyModule

from .detection_graph import DetectionGraph
from .exportable import pixel_centres, run_encoder
from .image_graph import take


class DinoGraph(DetectionGraph):
    """DINO on images that are not padded.

    Args:
        model: MMDetection's DINO.
    """

    def __init__(self, model: AnyModule) -> None:
        super().__init__(model, min_places=model.num_queries)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return boxes, (B, N, 4), x1, y1, x2, y2 in pixels, scores and labels, both (B, N)."""
        model, (height, width) = self.network, image.shape[-2:]
        maps = model.extract_feat(self.normalised(image))
        positions = [
            model.positional_encoding(None, input=feature) + embedding[:, None, None]
            for feature, embedding in zip(maps, model.level_embed)
        ]
        memory, sizes = run_encoder(model.encoder.layers, maps, positions)
        queries, references = self._proposals(memory, sizes)
        states, references = model.decoder(
            query=queries,
            value=memory,
            key_padding_mask=None,
            self_attn_mask=None,
            reference_points=references,
            spatial_shapes=sizes,
            level_start_index=None,
            valid_ratios=memory.new_ones(memory.shape[0], len(sizes), 2),
            reg_branches=model.bbox_head.reg_branches,
        )
        class_scores, boxes = (outputs[-1] for outputs in model.bbox_head(states, list(references)))
        scores, index = class_scores.sigmoid().flatten(1).topk(model.test_cfg.max_per_img)
        num_classes = class_scores.shape[-1]
        boxes = take(boxes, index // num_classes)
        centre, half = boxes[..., :2], boxes[..., 2:] / 2
        x1, y1, x2, y2 = torch.cat([centre - half, centre + half], -1).clamp(0, 1).unbind(-1)
        boxes = torch.stack([x1 * width, y1 * height, x2 * width, y2 * height], -1)
        return boxes, scores, index % num_classes

    def _proposals(self, memory: Tensor, sizes: Sequence[tuple[int, int]]) -> tuple[Tensor, Tensor]:
        """Return the decoder's queries, (B, Q, C), and their initial boxes, (B, Q, 4), from 0 to 1."""
        model = self.network
        grids = [pixel_centres(*size, memory) for size in sizes]
        squares = [
            torch.cat([grid, torch.full_like(grid, 0.05 * 2.0**level)], -1)
            for level, grid in enumerate(grids)
        ]
        boxes = torch.cat(squares)[None]
        inside = ((boxes > 0.01) & (boxes < 0.99)).all(-1, keepdim=True)
        logits = (boxes / (1 - boxes)).log().masked_fill(~inside, float('inf'))
        memory = model.memory_trans_norm(model.memory_trans_fc(memory.masked_fill(~inside, 0)))
        head, last = model.bbox_head, model.decoder.num_layers
        best = head.cls_branches[last](memory).amax(-1).topk(model.num_queries).indices
        coordinates = head.reg_branches[last](memory) + logits
        references = take(coordinates, best).sigmoid()
        return model.query_embedding.weight.expand(memory.shape[0], -1, -1), references
