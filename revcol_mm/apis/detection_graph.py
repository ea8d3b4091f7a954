"""Detectors as deployers run them: raw images in, boxes out, always as many; scores of 0 fill up.

Letters: B batch, C and H and W channels and size of the images, K classes, N boxes, L levels.
"""

from typing import Sequence

import torch
from mmengine.config import ConfigDict
from torch import Tensor, nn
from torchvision.ops import box_iou, nms, roi_align

from revcol_mm.models.image_channels import image_channels

from .exportable import centres, encode
from .image_graph import ImageGraph

DETECTIONS = {
    'boxes': 'float32, (B, N, 4): x1, y1, x2, y2 in pixels, the best first',
    'scores': 'float32, (B, N): 0 where there is no box',
    'labels': 'int64, (B, N): classes',
}
PROBE_SIZE = 256  # height and width of an image by which strides are found
MAX_CANDIDATES = 5000  # of an image, that reach NMS


class DetectionGraph(ImageGraph):
    """A detector on images that are not padded.

    Args:
        model: Of MMDetection.
        has_masks: Whether it returns 'masks', too.
        min_places: Least number of places that all levels have together.
    """

    def __init__(self, model: nn.Module, has_masks: bool = False, min_places: int = 1) -> None:
        masks = {'masks': 'float32, (B, N, h, w): probabilities in h x w parts of each box'}
        super().__init__(model.data_preprocessor, model, DETECTIONS | (masks if has_masks else {}))
        param = next(model.parameters())
        with torch.no_grad():
            maps = model.extract_feat(param.new_zeros(1, image_channels(model), PROBE_SIZE, PROBE_SIZE))
        strides = [PROBE_SIZE // feature.shape[-1] for feature in maps]
        self.min_side = 2 * max(strides)  # two pixels at each level, or torch.export takes another case
        while sum((self.min_side // stride) ** 2 for stride in strides) < min_places:
            self.min_side += max(strides)

    def difference(self, outputs: Sequence[Tensor], image: Tensor) -> float:
        """How far scores are, in their order, and what each box lacks of overlap with one of its class.

        Boxes whose scores are within 0.001 of the last one's may be others, and do not count.
        """
        expected = self(image)
        worst = [(outputs[1] - expected[1]).abs().max()]
        for actual, right in zip(zip(*outputs), zip(*expected)):
            boxes, scores, labels, *masks = actual
            their_boxes, their_scores, their_labels, *their_masks = right
            sure = (scores > their_scores[-1] + 1e-3) & (boxes[:, 2:] > boxes[:, :2]).all(1)
            overlaps = box_iou(boxes, their_boxes).nan_to_num() * (labels[:, None] == their_labels)
            overlap, index = overlaps[sure].max(1)
            worst.append((1 - overlap).max() if sure.any() else worst[0])
            if masks and sure.any():
                worst.append((masks[0][sure] - their_masks[0][index]).abs().max())
        return max(each.item() for each in worst)


class DinoGraph(DetectionGraph):
    """DINO on images that are not padded.

    Args:
        model: MMDetection's DINO.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model, min_places=model.num_queries)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, C, H, W) -> boxes, (B, N, 4), x1, y1, x2, y2 in pixels; scores and labels, (B, N)."""
        model, (height, width) = self.network, image.shape[-2:]
        maps = model.extract_feat(self.normalised(image))
        positions = [
            model.positional_encoding(None, input=feature) + embedding[:, None, None]
            for feature, embedding in zip(maps, model.level_embed)
        ]
        memory, sizes = encode(model.encoder.layers, maps, positions)
        queries, references = self._proposals(memory, sizes)
        ratios = memory.new_ones(memory.shape[0], len(sizes), 2)
        states, references = model.decoder(
            query=queries,
            value=memory,
            key_padding_mask=None,
            self_attn_mask=None,
            reference_points=references,
            spatial_shapes=sizes,
            level_start_index=None,
            valid_ratios=ratios,
            reg_branches=model.bbox_head.reg_branches,
        )
        class_scores, boxes = (outputs[-1] for outputs in model.bbox_head(states, list(references)))
        scores, index = class_scores.sigmoid().flatten(1).topk(model.test_cfg.max_per_img)
        num_classes = class_scores.shape[-1]
        boxes = boxes.gather(1, (index // num_classes)[..., None].expand(-1, -1, 4))
        centre, half = boxes[..., :2], boxes[..., 2:] / 2
        x1, y1, x2, y2 = torch.cat([centre - half, centre + half], -1).clamp(0, 1).unbind(-1)
        return (
            torch.stack([x1 * width, y1 * height, x2 * width, y2 * height], -1),
            scores,
            index % num_classes,
        )

    def _proposals(self, memory: Tensor, sizes: Sequence[tuple[int, int]]) -> tuple[Tensor, Tensor]:
        """Queries of the decoder, (B, Q, C), and the boxes that they begin at, (B, Q, 4), from 0 to 1."""
        model = self.network
        grids = [centres(*size, memory) for size in sizes]
        boxes = torch.cat(
            [
                torch.cat([grid, torch.full_like(grid, 0.05 * 2.0**level)], -1)
                for level, grid in enumerate(grids)
            ]
        )[None]
        inside = ((boxes > 0.01) & (boxes < 0.99)).all(-1, keepdim=True)
        logits = (boxes / (1 - boxes)).log().masked_fill(~inside, float('inf'))
        memory = model.memory_trans_norm(model.memory_trans_fc(memory.masked_fill(~inside, 0)))
        head, last = model.bbox_head, model.decoder.num_layers
        best = head.cls_branches[last](memory).amax(-1).topk(model.num_queries).indices
        coordinates = head.reg_branches[last](memory) + logits
        references = coordinates.gather(1, best[..., None].expand(-1, -1, 4)).sigmoid()
        return model.query_embedding.weight.expand(memory.shape[0], -1, -1), references


class RetinaNetGraph(DetectionGraph):
    """RetinaNet on images that are not padded.

    Args:
        model: MMDetection's RetinaNet.

    Raises:
        ValueError: If its NMS is a soft one, or scores are no sigmoid.
    """

    def __init__(self, model: nn.Module) -> None:
        check_nms(model.test_cfg)
        if not model.bbox_head.use_sigmoid_cls:
            raise ValueError('RetinaNet is exported with a sigmoid for scores alone')
        super().__init__(model)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, C, H, W) -> boxes, (B, N, 4), x1, y1, x2, y2 in pixels; scores and labels, (B, N)."""
        model, size = self.network, tuple(image.shape[-2:])
        cfg = model.test_cfg
        maps = model.extract_feat(self.normalised(image))
        boxes, scores, labels, _ = candidates(model.bbox_head, maps, size, cfg.nms_pre)
        extent = boxes[..., 2:] - boxes[..., :2]
        is_box = (scores > cfg.score_thr) & (extent > cfg.get('min_bbox_size', -1)).all(-1)
        scores = scores.masked_fill(~is_box, -1)
        scores = suppress(boxes, scores, labels, model.bbox_head.num_classes, size, cfg.nms.iou_threshold)
        scores, index = scores.topk(cfg.max_per_img)
        boxes = boxes.gather(1, index[..., None].expand(-1, -1, 4))
        return boxes, scores.clamp(min=0), labels.gather(1, index)


class CascadeGraph(DetectionGraph):
    """Cascade R-CNN, with masks or without.

    Of an image 5000 candidates reach the last NMS at most, those with the highest scores.

    Args:
        model: MMDetection's CascadeRCNN, with an RPN and heads for boxes, and maybe for masks.

    Raises:
        ValueError: If its NMS is a soft one, or scores are no softmax.
    """

    def __init__(self, model: nn.Module) -> None:
        for cfg in (model.rpn_head.test_cfg, model.roi_head.test_cfg):
            check_nms(cfg)
        if (
            any(head.custom_activation for head in model.roi_head.bbox_head)
            or not model.rpn_head.use_sigmoid_cls
        ):
            raise ValueError('exported are an RPN with sigmoid and box heads with softmax alone')
        super().__init__(model, model.roi_head.with_mask)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """(B, C, H, W) -> boxes, (B, N, 4), x1, y1, x2, y2 in pixels; scores and labels, (B, N); masks.

        Masks are probabilities in their boxes, (B, N, 28, 28).
        """
        model, size = self.network, tuple(image.shape[-2:])
        maps = model.extract_feat(self.normalised(image))
        proposals, is_proposal = self._propose(maps, size)
        boxes, class_scores = self._refine(maps, proposals, size)
        scores = class_scores * is_proposal[..., None]
        boxes, scores, labels = self._select(boxes, scores, size)
        masks = [self._masks(maps, boxes, labels)] if model.roi_head.with_mask else []
        return boxes, scores, labels, *masks

    def _propose(self, maps: Sequence[Tensor], size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Proposals of the RPN, (B, P, 4), and whether they are any, (B, P)."""
        head = self.network.rpn_head
        cfg = head.test_cfg
        boxes, scores, _, levels = candidates(head, maps, size, cfg.nms_pre)
        extent = boxes[..., 2:] - boxes[..., :2]
        scores = scores.masked_fill((extent <= cfg.get('min_bbox_size', -1)).any(-1), -1)
        scores = suppress(boxes, scores, levels, len(maps), size, cfg.nms.iou_threshold)
        scores, index = scores.topk(torch.sym_min(cfg.max_per_img, scores.shape[1]))
        return boxes.gather(1, index[..., None].expand(-1, -1, 4)), scores >= 0

    def _refine(self, maps: Sequence[Tensor], boxes: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Boxes of proposals, (B, P, 1 or K, 4), and their scores, (B, P, K)."""
        heads, shape = self.network.roi_head, boxes.shape[:2]
        logits = []
        for stage, head in enumerate(heads.bbox_head):
            rois = as_rois(boxes)
            class_logits, deltas = head(extract(heads.bbox_roi_extractor[stage], maps, rois))
            logits.append(class_logits)
            if stage < heads.num_stages - 1:
                label = class_logits[:, :-1].argmax(1)
                refined = head.regress_by_class(rois[:, 1:], label, deltas, dict(img_shape=size))
                boxes = refined.unflatten(0, shape)
        number = deltas.shape[1] // 4
        priors = boxes.flatten(0, 1)[:, None].expand(-1, number, -1).flatten(0, 1)
        boxes = head.bbox_coder.decode(priors, deltas.reshape(-1, 4), max_shape=size)
        scores = (sum(logits) / len(logits)).softmax(-1)[:, :-1]
        return boxes.unflatten(0, (*shape, number)), scores.unflatten(0, shape)

    def _select(self, boxes: Tensor, scores: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
        """The N best boxes after NMS in each class, their scores and labels."""
        cfg, num_classes = self.network.roi_head.test_cfg, scores.shape[-1]
        scores, index = scores.flatten(1).topk(torch.sym_min(MAX_CANDIDATES, scores.shape[1] * num_classes))
        labels, place = index % num_classes, index if boxes.shape[2] > 1 else index // num_classes
        boxes = boxes.flatten(1, 2).gather(1, place[..., None].expand(-1, -1, 4))
        scores = scores.masked_fill(scores <= cfg.score_thr, -1)
        scores = suppress(boxes, scores, labels, num_classes, size, cfg.nms.iou_threshold)
        scores, index = scores.topk(cfg.max_per_img)
        boxes = boxes.gather(1, index[..., None].expand(-1, -1, 4))
        return boxes, scores.clamp(min=0), labels.gather(1, index)

    def _masks(self, maps: Sequence[Tensor], boxes: Tensor, labels: Tensor) -> Tensor:
        """Masks of boxes, (B, N, 28, 28)."""
        heads, rois = self.network.roi_head, as_rois(boxes)
        masks = []
        for extractor, head in zip(heads.mask_roi_extractor, heads.mask_head):
            masks.append(head(extract(extractor, maps, rois)).sigmoid())
        masks = sum(masks) / len(masks)
        if masks.shape[1] > 1:
            label = labels.flatten()[:, None, None, None].expand(-1, 1, *masks.shape[2:])
            masks = masks.gather(1, label)
        return masks[:, 0].unflatten(0, labels.shape)


def check_nms(cfg: ConfigDict) -> None:
    """Raise a ValueError if a ``test_cfg`` asks for other than plain NMS."""
    if cfg.nms.get('type', 'nms') != 'nms':
        raise ValueError(f'NMS is exported as nms alone, but the config has {cfg.nms.type}')


def candidates(
    head: nn.Module, maps: Sequence[Tensor], size: tuple[int, int], most: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The boxes of anchors that score best in each level.

    Args:
        head: MMDetection's head of anchors, whose scores are sigmoids.
        maps: Features of every level.
        size: H and W.
        most: How many are kept of a level; from 0 down all.

    Returns:
        Boxes, (B, P, 4), and their scores, labels and levels, (B, P).
    """
    sizes = [(feature.shape[-2], feature.shape[-1]) for feature in maps]
    priors = head.prior_generator.grid_priors(sizes, device=maps[0].device)
    parts, num_classes = [], head.cls_out_channels
    for level, (logits, deltas, prior) in enumerate(zip(*head(maps), priors)):
        scores = logits.permute(0, 2, 3, 1).flatten(1).sigmoid()
        deltas = deltas.permute(0, 2, 3, 1).flatten(1).unflatten(1, (-1, 4))
        number = scores.shape[1]
        scores, index = scores.topk(torch.sym_min(most, number) if most > 0 else number)
        place = index // num_classes
        deltas = deltas.gather(1, place[..., None].expand(-1, -1, 4))
        boxes = head.bbox_coder.decode(prior[place].flatten(0, 1), deltas.flatten(0, 1), max_shape=size)
        labels = index % num_classes
        parts.append((boxes.unflatten(0, scores.shape), scores, labels, torch.full_like(index, level)))
    return tuple(torch.cat(tensors, 1) for tensors in zip(*parts))


def as_rois(boxes: Tensor) -> Tensor:
    """(B, N, 4) -> (B * N, 5), the image's index first."""
    index = torch.arange(boxes.shape[0], dtype=boxes.dtype, device=boxes.device)[:, None, None]
    return torch.cat([index.expand(-1, boxes.shape[1], -1), boxes], -1).flatten(0, 1)


def extract(extractor: nn.Module, maps: Sequence[Tensor], rois: Tensor) -> Tensor:
    """Features of regions, (R, C, h, w), each from its level of MMDetection's SingleRoIExtractor."""
    levels = extractor.map_roi_levels(rois, len(extractor.roi_layers))
    features = 0
    for level, (layer, feature) in enumerate(zip(extractor.roi_layers, maps)):
        pooled = roi_align(
            feature, rois, layer.output_size, layer.spatial_scale, layer.sampling_ratio, layer.aligned
        )
        features = features + pooled * (levels == level)[:, None, None, None]
    return features


def suppress(
    boxes: Tensor,
    scores: Tensor,
    groups: Tensor,
    num_groups: int,
    size: tuple[int, int],
    iou_threshold: float,
) -> Tensor:
    """NMS of all images at once, in each group of each.

    Args:
        boxes: (B, P, 4).
        scores: (B, P); below 0 where there is no box.
        groups: Of each box, (B, P).
        num_groups: G.
        size: H and W.
        iou_threshold: Of NMS.

    Returns:
        The scores, -1 where a box is suppressed.
    """
    image = torch.arange(scores.shape[0], device=scores.device)[:, None]
    apart = (image * num_groups + groups) * (size[0] + size[1])  # so that no two groups overlap
    kept = nms((boxes + apart[..., None]).flatten(0, 1), scores.flatten(), iou_threshold)
    is_kept = torch.zeros_like(scores.flatten()).index_fill(0, kept, 1).unflatten(0, scores.shape) > 0
    return scores.masked_fill(~is_kept, -1)
