"""Mask2Former as it is exported: label maps, objects or panoptic segments.

Shapes: B batch, C, H and W channels, height and width of the images, K classes, Q queries, N objects.
"""

from typing import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from revcol_mm.any_module import AnyModule

from .detection_graph import DETECTIONS
from .image_graph import ImageGraph, SegmentationGraph, take

INSTANCE_OFFSET = 1000  # in MMDetection, the id of a segment is its class + 1000 x its number
SEGMENTS = {
    'segments': 'int64, (B, H, W): class + 1000 x number of the segment of each pixel, K where there is none'
}
MASK_LOGITS = {'mask_logits': 'float32, (B, N, H / 4, W / 4): to be scaled up bilinearly, above 0 inside'}
# Differences of probabilities below this may be rounding. It grows in trained decoders, which attend to where
# a mask's probability is above 0.5.
MARGIN = 1e-3


def scale_masks(masks: Tensor, size: Sequence[int]) -> Tensor:
    """Scale masks, (B, Q, h, w), to height and width of the image."""
    return F.interpolate(masks, tuple(size), mode='bilinear', align_corners=False)


class SemanticMask2FormerGraph(SegmentationGraph):
    """Mask2Former for semantic segmentation, whose scores are sums of masks weighted by class scores.

    Args:
        model: Segmentor with MMSegmentation's Mask2FormerHead.
    """

    tolerance = MARGIN

    def __init__(self, model: AnyModule) -> None:
        super().__init__(model.data_preprocessor, model, align_corners=False)

    def class_scores(self, image: Tensor) -> Tensor:
        """Return the scores of every pixel, (B, K, H, W)."""
        model = self.network
        (*_, classes), (*_, masks) = model.decode_head(model.extract_feat(self.normalised(image)), None)
        masks = scale_masks(masks, image.shape[-2:]).sigmoid()
        return torch.einsum('bqc,bqhw->bchw', classes.softmax(-1)[..., :-1], masks)


class Mask2FormerGraph(ImageGraph):
    """Mask2Former for instance and panoptic segmentation, on images that are not padded.

    Args:
        model: MMDetection's Mask2Former.

    Raises:
        ValueError: If its ``test_cfg`` asks for other results.
    """

    tolerance = MARGIN

    def __init__(self, model: AnyModule) -> None:
        fusion = model.panoptic_fusion_head
        cfg = fusion.test_cfg
        self.is_panoptic, self.has_objects = cfg.get('panoptic_on', True), cfg.get('instance_on', False)
        if cfg.get('semantic_on') or not (self.is_panoptic or self.has_objects):
            raise ValueError(
                'Mask2Former can be exported only if its test_cfg has panoptic_on or instance_on, and '
                'not semantic_on'
            )
        outputs = dict(SEGMENTS) if self.is_panoptic else {}
        if self.has_objects:
            outputs.update(DETECTIONS | MASK_LOGITS)
        super().__init__(model.data_preprocessor, model, outputs)
        self.num_things, self.num_classes = fusion.num_things_classes, fusion.num_classes
        num_candidates = model.panoptic_head.num_queries * self.num_classes
        self.max_objects = min(cfg.get('max_per_image', 100), num_candidates)
        self.min_score, self.min_share = cfg.get('object_mask_thr', 0.8), cfg.get('iou_thr', 0.8)
        self.filters_pixels = cfg.get('filter_low_score', False)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Return what the config asks for: 'segments' and then boxes, scores, labels and mask logits.

        Segments, int64, (B, H, W), are ids of MMDetection: class + 1000 x number of a thing, the class of
        stuff, K where there is nothing. Boxes, (B, N, 4), are x1, y1, x2, y2 in pixels; scores and labels are
        (B, N); mask logits, (B, N, H / 4, W / 4), are above 0 inside the object once they are scaled up.
        """
        probabilities, masks = self._query_outputs(image)
        full = scale_masks(masks, image.shape[-2:])
        segments = [self._segments(probabilities, full.sigmoid())] if self.is_panoptic else []
        return *segments, *(self._objects(probabilities[..., :-1], masks, full) if self.has_objects else ())

    def _query_outputs(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Return class probabilities, (B, Q, K + 1), and mask logits, (B, Q, H / 4, W / 4)."""
        model = self.network
        (*_, classes), (*_, masks) = model.panoptic_head(model.extract_feat(self.normalised(image)), None)
        return classes.softmax(-1), masks

    def _is_segment(self, score: Tensor, label: Tensor) -> Tensor:
        return (label != self.num_classes) & (score > self.min_score)

    def _segments(self, probabilities: Tensor, masks: Tensor) -> Tensor:
        """Return the segment id of every pixel, (B, H, W), from class and mask probabilities."""
        score, label = probabilities.max(-1)
        is_kept = self._is_segment(score, label)
        kept = is_kept[..., None, None]
        owner = torch.where(kept, score[..., None, None] * masks, -1).argmax(1, keepdim=True)
        inside = masks >= 0.5
        queries = torch.arange(label.shape[1], device=label.device)[:, None, None]
        visible = (owner == queries).sum((-2, -1))
        area = inside.sum((-2, -1))
        is_kept = is_kept & (visible > 0) & (area > 0) & (visible >= self.min_share * area)
        is_thing = label < self.num_things
        number = (is_kept & is_thing).long().cumsum(1)
        ids = torch.where(is_thing, label + INSTANCE_OFFSET * number, label)
        ids = torch.where(is_kept, ids, self.num_classes)[..., None, None].expand(masks.shape)
        segments = ids.gather(1, owner)
        if self.filters_pixels:
            segments = torch.where(inside.gather(1, owner), segments, self.num_classes)
        return segments[:, 0]

    def _objects(self, scores: Tensor, masks: Tensor, full: Tensor) -> tuple[Tensor, ...]:
        """Return boxes, scores, labels and mask logits of the N best objects.

        Args:
            scores: Of classes, (B, Q, K).
            masks: Logits, (B, Q, H / 4, W / 4).
            full: The same logits scaled up, (B, Q, H, W).
        """
        scores, index = scores.flatten(1).topk(self.max_objects)
        labels, query = index % self.num_classes, index // self.num_classes
        full = take(full, query)
        inside = full > 0
        certainty = (full.sigmoid() * inside).sum((-2, -1)) / (inside.sum((-2, -1)) + 1e-6)
        scores = scores * certainty * (labels < self.num_things)
        scores, order = scores.sort(descending=True)
        masks = take(masks, take(query, order))
        boxes = take(bounding_boxes(inside), order)
        return boxes, scores, take(labels, order), masks

    def difference(self, outputs: Sequence[Tensor], image: Tensor) -> float:
        """Return the larger of :meth:`segments_difference` and :meth:`objects_difference`."""
        expected, differences = self(image), []
        if self.is_panoptic:
            differences.append(self.segments_difference(outputs[0], expected[0], image))
        if self.has_objects:
            differences.append(self.objects_difference(outputs[-4:], expected[-4:], image.shape[-2:]))
        return max(differences)

    @staticmethod
    def objects_difference(
        outputs: Sequence[Tensor], expected: Sequence[Tensor], size: Sequence[int]
    ) -> float:
        """Return the largest error of the sorted scores and of the masks, in probability.

        Every mask is compared with the closest expected one of its class. Objects whose score is within
        MARGIN of the last score are skipped, since which of them are among the N best may depend on
        rounding. The difference is 1 if a box is not the bounding box of its mask, except for pixels within
        MARGIN of 0.

        Args:
            outputs: Boxes, scores, labels and mask logits.
            expected: The same of the model.
            size: H and W.
        """
        worst = [(outputs[1] - expected[1]).abs().max()]
        for (boxes, scores, labels, logits), right in zip(zip(*outputs), zip(*expected)):
            _, expected_scores, expected_labels, expected_logits = right
            certain = scores > expected_scores[-1] + MARGIN
            for label, mask in zip(labels[certain], logits[certain].sigmoid()):
                distance = (expected_logits.sigmoid() - mask).abs().amax((-2, -1))
                worst.append(distance.masked_fill(expected_labels != label, 1).min())
            full = scale_masks(logits[None], size)[0]
            inner, outer = (bounding_boxes(full > margin) for margin in (MARGIN, -MARGIN))
            is_empty = (inner == 0).all(1, keepdim=True)
            sign = boxes.new_tensor([1, 1, -1, -1])  # so that all four sides of an outer box are smaller
            fits = (boxes * sign >= outer * sign) & ((boxes * sign <= inner * sign) | is_empty)
            worst.append(1 - fits.all().float())
        return max(each.item() for each in worst)

    def segments_difference(self, segments: Tensor, expected: Tensor, image: Tensor) -> float:
        """Return the share of pixels in another segment, without those that rounding may decide.

        Args:
            segments: Ids, (B, H, W).
            expected: Ids of the model.
            image: (B, C, H, W).
        """
        probabilities, masks = self._query_outputs(image)
        score, label = probabilities.max(-1)
        masks = scale_masks(masks, image.shape[-2:]).sigmoid()
        is_kept = self._is_segment(score, label)[..., None, None]
        best = (masks * score[..., None, None] * is_kept).topk(2, dim=1).values
        tied = (best[:, 0] - best[:, 1] < MARGIN) | (((masks - 0.5).abs() < MARGIN) & is_kept).any(1)
        return ((segments != expected) & ~tied).float().mean().item()


def bounding_boxes(masks: Tensor) -> Tensor:
    """Return the boxes around masks, (B, N, H, W), as (B, N, 4), x1, y1, x2, y2; zeros for an empty mask."""
    sides = []
    for dim in (-2, -1):  # x, then y
        occupied = masks.any(dim)
        place = torch.arange(occupied.shape[-1], device=masks.device)
        first = torch.where(occupied, place, occupied.shape[-1]).amin(-1)
        last = torch.where(occupied, place + 1, 0).amax(-1)
        sides.append((torch.minimum(first, last), last))
    (left, right), (top, bottom) = sides
    return torch.stack([left, top, right, bottom], -1).float()
