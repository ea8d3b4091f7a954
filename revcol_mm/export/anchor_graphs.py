"""Detectors with anchors as they are exported: RetinaNet and Cascade R-CNN.

Shapes: B batch, C, H and W channels, height and width of the images, K classes, N boxes, P candidates.
"""

import functools
from typing import Sequence

import torch
from mmengine.config import ConfigDict
from torch import Tensor
from torchvision.ops import nms, roi_align

from revcol_mm.any_module import AnyModule

from .detection_graph import DetectionGraph
from .image_graph import take

MAX_CANDIDATES = 5000  # of an image that reach the last NMS of Cascade R-CNN
Size = tuple[int, int]  # height and width


class RetinaNetGraph(DetectionGraph):
    """RetinaNet on images that are not padded.

    Args:
        model: MMDetection's RetinaNet.

    Raises:
        ValueError: If it uses soft NMS, or its scores are not sigmoids.
    """

    def __init__(self, model: AnyModule) -> None:
        check_nms(model.test_cfg)
        if not model.bbox_head.use_sigmoid_cls:
            raise ValueError('RetinaNet can be exported only with sigmoid scores (use_sigmoid_cls)')
        super().__init__(model)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return boxes, (B, N, 4), x1, y1, x2, y2 in pixels, scores and labels, both (B, N)."""
        model, cfg, size = self.network, self.network.test_cfg, as_size(image)
        maps = model.extract_feat(self.normalised(image))
        boxes, scores, labels, _ = candidates(model.bbox_head, maps, size, cfg.nms_pre)
        valid = (scores > cfg.score_thr) & is_large(boxes, cfg)
        scores = scores.masked_fill(~valid, -1)
        scores = suppress(boxes, scores, labels, model.bbox_head.num_classes, size, cfg.nms.iou_threshold)
        return best(boxes, scores, labels, cfg.max_per_img)


class CascadeGraph(DetectionGraph):
    """Cascade R-CNN or Cascade Mask R-CNN on images that are not padded.

    Of each image, only the MAX_CANDIDATES boxes with the highest scores reach the last NMS.

    Args:
        model: MMDetection's CascadeRCNN.

    Raises:
        ValueError: If it uses soft NMS, or its scores are not a softmax.
    """

    def __init__(self, model: AnyModule) -> None:
        for cfg in (model.rpn_head.test_cfg, model.roi_head.test_cfg):
            check_nms(cfg)
        custom = any(head.custom_activation for head in model.roi_head.bbox_head)
        if custom or not model.rpn_head.use_sigmoid_cls:
            raise ValueError('Cascade R-CNN can be exported only with a sigmoid RPN and softmax box heads')
        super().__init__(model, model.roi_head.with_mask)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Return boxes, (B, N, 4), x1, y1, x2, y2 in pixels, scores and labels, (B, N), and perhaps masks.

        Masks, (B, N, 28, 28), are probabilities in the parts of a box.
        """
        model, size = self.network, as_size(image)
        maps = model.extract_feat(self.normalised(image))
        proposals, is_proposal = self._propose(maps, size)
        boxes, scores = self._refine(maps, proposals, size)
        boxes, scores, labels = self._select(boxes, scores * is_proposal[..., None], size)
        masks = [self._masks(maps, boxes, labels)] if model.roi_head.with_mask else []
        return boxes, scores, labels, *masks

    def _propose(self, maps: Sequence[Tensor], size: Size) -> tuple[Tensor, Tensor]:
        """Return the RPN's proposals, (B, P, 4), and whether they are valid, (B, P)."""
        head = self.network.rpn_head
        cfg = head.test_cfg
        boxes, scores, _, levels = candidates(head, maps, size, cfg.nms_pre)
        scores = scores.masked_fill(~is_large(boxes, cfg), -1)
        scores = suppress(boxes, scores, levels, len(maps), size, cfg.nms.iou_threshold)
        scores, index = scores.topk(torch.sym_min(cfg.max_per_img, scores.shape[1]))
        return take(boxes, index), scores >= 0

    def _refine(self, maps: Sequence[Tensor], boxes: Tensor, size: Size) -> tuple[Tensor, Tensor]:
        """Run the box heads; return boxes, (B, P, 1 or K, 4), and scores, (B, P, K)."""
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

    def _select(self, boxes: Tensor, scores: Tensor, size: Size) -> tuple[Tensor, Tensor, Tensor]:
        """Return the N best boxes after NMS within each class, their scores and labels."""
        cfg, num_classes = self.network.roi_head.test_cfg, scores.shape[-1]
        scores, index = scores.flatten(1).topk(torch.sym_min(MAX_CANDIDATES, scores.shape[1] * num_classes))
        labels, place = index % num_classes, index if boxes.shape[2] > 1 else index // num_classes
        boxes = take(boxes.flatten(1, 2), place)
        scores = scores.masked_fill(scores <= cfg.score_thr, -1)
        scores = suppress(boxes, scores, labels, num_classes, size, cfg.nms.iou_threshold)
        return best(boxes, scores, labels, cfg.max_per_img)

    def _masks(self, maps: Sequence[Tensor], boxes: Tensor, labels: Tensor) -> Tensor:
        """Return the masks of boxes, (B, N, 28, 28)."""
        heads, rois = self.network.roi_head, as_rois(boxes)
        masks = [
            head(extract(extractor, maps, rois)).sigmoid()
            for extractor, head in zip(heads.mask_roi_extractor, heads.mask_head)
        ]
        mean = sum(masks) / len(masks)
        if mean.shape[1] > 1:
            mean = take(mean, labels.flatten()[:, None])
        return mean[:, 0].unflatten(0, labels.shape)


def as_size(image: Tensor) -> Size:
    """Return height and width."""
    return image.shape[-2], image.shape[-1]


def check_nms(cfg: ConfigDict) -> None:
    """Raise a ValueError if a ``test_cfg`` asks for anything but plain NMS."""
    if (name := cfg.nms.get('type', 'nms')) != 'nms':
        raise ValueError(f"only NMS of type 'nms' can be exported, but the config's test_cfg has {name!r}")


def candidates(
    head: AnyModule, maps: Sequence[Tensor], size: Size, max_per_level: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Decode the anchors with the highest scores of each level.

    Args:
        head: Anchor head of MMDetection with sigmoid scores.
        maps: Features of every level.
        size: H and W.
        max_per_level: Number of anchors to keep of a level; all if it is 0 or negative.

    Returns:
        Boxes, (B, P, 4), and their scores, labels and levels, each (B, P).
    """
    sizes = [(feature.shape[-2], feature.shape[-1]) for feature in maps]
    priors = head.prior_generator.grid_priors(sizes, device=maps[0].device)
    parts, num_classes = [], head.cls_out_channels
    for level, (logits, deltas, prior) in enumerate(zip(*head(maps), priors)):
        scores = logits.permute(0, 2, 3, 1).flatten(1).sigmoid()
        deltas = deltas.permute(0, 2, 3, 1).flatten(1).unflatten(1, (-1, 4))
        number = scores.shape[1]
        scores, index = scores.topk(torch.sym_min(max_per_level, number) if max_per_level > 0 else number)
        place = index // num_classes
        deltas = take(deltas, place)
        boxes = head.bbox_coder.decode(prior[place].flatten(0, 1), deltas.flatten(0, 1), max_shape=size)
        labels = index % num_classes
        parts.append((boxes.unflatten(0, scores.shape), scores, labels, torch.full_like(index, level)))
    boxes, scores, labels, levels = (torch.cat(tensors, 1) for tensors in zip(*parts))
    return boxes, scores, labels, levels


def is_large(boxes: Tensor, cfg: ConfigDict) -> Tensor:
    """Return whether boxes, (..., 4), exceed the config's ``min_bbox_size``."""
    return (boxes[..., 2:] - boxes[..., :2] > cfg.get('min_bbox_size', -1)).all(-1)


def best(boxes: Tensor, scores: Tensor, labels: Tensor, number: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the boxes with the highest scores, their scores, 0 instead of -1, and their labels."""
    scores, index = scores.topk(number)
    return take(boxes, index), scores.clamp(min=0), take(labels, index)


def as_rois(boxes: Tensor) -> Tensor:
    """Turn boxes, (B, N, 4), into RoIs, (B * N, 5), with the index of the image first."""
    index = torch.arange(boxes.shape[0], dtype=boxes.dtype, device=boxes.device)[:, None, None]
    return torch.cat([index.expand(-1, boxes.shape[1], -1), boxes], -1).flatten(0, 1)


def extract(extractor: AnyModule, maps: Sequence[Tensor], rois: Tensor) -> Tensor:
    """Return the features of RoIs, (R, C, h, w), as MMDetection's SingleRoIExtractor does.

    Every RoI is pooled from all levels and the right one is kept, because indexing would make the shape
    depend on the values.
    """
    levels = extractor.map_roi_levels(rois, len(extractor.roi_layers))
    features = (
        roi_align(feature, rois, layer.output_size, layer.spatial_scale, layer.sampling_ratio, layer.aligned)
        * (levels == level)[:, None, None, None]
        for level, (layer, feature) in enumerate(zip(extractor.roi_layers, maps))
    )
    return functools.reduce(torch.add, features)


def suppress(
    boxes: Tensor, scores: Tensor, groups: Tensor, num_groups: int, size: Size, iou_threshold: float
) -> Tensor:
    """Apply NMS within each group of each image, to all images at once.

    Args:
        boxes: (B, P, 4).
        scores: (B, P), below 0 where there is no box.
        groups: Group of each box, (B, P), such as its class.
        num_groups: Number of groups.
        size: H and W.
        iou_threshold: IoU above which the box with the lower score is suppressed.

    Returns:
        The scores, with -1 for suppressed boxes.
    """
    image = torch.arange(scores.shape[0], device=scores.device)[:, None]
    shift = (image * num_groups + groups) * (size[0] + size[1])  # moves groups apart, so that none overlap
    kept = nms((boxes + shift[..., None]).flatten(0, 1), scores.flatten(), iou_threshold)
    is_kept = torch.zeros_like(scores.flatten()).index_fill(0, kept, 1).unflatten(0, scores.shape) > 0
    return scores.masked_fill(~is_kept, -1)
