"""Mask2Former as deployers run it: raw images in; label maps, objects or panoptic segments out.

Letters: B batch, C and H and W channels and size of the images, K classes, Q queries, N objects.
"""

from typing import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .detection_graph import DETECTIONS
from .image_graph import ImageGraph, SegmentationGraph

INSTANCE_OFFSET = 1000  # MMDetection's: a segment's id is its class + 1000 x its number
SEGMENTS = {
    'segments': 'int64, (B, H, W): class + 1000 x number of the segment of each pixel, K where there is none'
}
MASK_LOGITS = {'mask_logits': 'float32, (B, N, H / 4, W / 4): to be scaled up bilinearly, above 0 inside'}
MARGIN = 1e-3  # of probabilities below which a pixel may fall either way


def scale_masks(masks: Tensor, size: Sequence[int]) -> Tensor:
    """Scale masks, (B, Q, h, w), to an image's size."""
    return F.interpolate(masks, tuple(size), mode='bilinear', align_corners=False)


class SemanticMask2FormerGraph(SegmentationGraph):
    """Mask2Former for semantic segmentation: the scores of a pixel are those of masks, times their classes'.

    Args:
        model: A segmentor with MMSegmentation's Mask2FormerHead.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model.data_preprocessor, model, align_corners=False)

    def class_scores(self, image: Tensor) -> Tensor:
        """(B, C, H, W) -> sums over masks, (B, K, H, W)."""
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

    def __init__(self, model: nn.Module) -> None:
        fusion = model.panoptic_fusion_head
        cfg = fusion.test_cfg
        self.is_panoptic, self.has_objects = cfg.get('panoptic_on', True), cfg.get('instance_on', False)
        if cfg.get('semantic_on') or not (self.is_panoptic or self.has_objects):
            raise ValueError('Mask2Former is exported with panoptic_on or instance_on, without semantic_on')
        outputs = dict(SEGMENTS) if self.is_panoptic else {}
        if self.has_objects:
            outputs.update(DETECTIONS | MASK_LOGITS)
        super().__init__(model.data_preprocessor, model, outputs)
        self.num_things, self.num_classes = fusion.num_things_classes, fusion.num_classes
        self.max_objects = min(
            cfg.get('max_per_image', 100), model.panoptic_head.num_queries * self.num_classes
        )
        self.min_score, self.min_share = cfg.get('object_mask_thr', 0.8), cfg.get('iou_thr', 0.8)
        self.filters_pixels = cfg.get('filter_low_score', False)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """(B, C, H, W) -> 'segments' of panoptic segmentation, and then objects, as the config asks for.

        Segments are ids of pixels, int64, (B, H, W): a segment's class + 1000 x its number, which of stuff is
        0; K where there is none. Objects are boxes, (B, N, 4), x1, y1, x2, y2 in pixels; scores and labels,
        (B, N); and mask logits, (B, N, H / 4, W / 4), to be scaled up, above 0 inside of an object.
        """
        model = self.network
        (*_, classes), (*_, masks) = model.panoptic_head(model.extract_feat(self.normalised(image)), None)
        probabilities, full = classes.softmax(-1), scale_masks(masks, image.shape[-2:])
        segments = [self._segments(probabilities, full.sigmoid())] if self.is_panoptic else []
        return *segments, *(self._objects(probabilities[..., :-1], masks, full) if self.has_objects else ())

    def _segments(self, probabilities: Tensor, masks: Tensor) -> Tensor:
        """Ids of pixels, (B, H, W), from (B, Q, K + 1) and (B, Q, H, W)."""
        score, label = probabilities.max(-1)
        is_kept = (label != self.num_classes) & (score > self.min_score)
        kept = is_kept[..., None, None]
        owner = torch.where(kept, score[..., None, None] * masks, -1).argmax(1, keepdim=True)
        inside = masks >= 0.5
        queries = torch.arange(label.shape[1], device=label.device)[:, None, None]
        area = (owner == queries).sum((-2, -1))
        whole = inside.sum((-2, -1))
        is_kept = is_kept & (area > 0) & (whole > 0) & (area >= self.min_share * whole)
        is_thing = label < self.num_things
        number = (is_kept & is_thing).long().cumsum(1)
        ids = torch.where(is_thing, label + INSTANCE_OFFSET * number, label)
        ids = torch.where(is_kept, ids, self.num_classes)[..., None, None].expand(masks.shape)
        segments = ids.gather(1, owner)
        if self.filters_pixels:
            segments = torch.where(inside.gather(1, owner), segments, self.num_classes)
        return segments[:, 0]

    def _objects(self, scores: Tensor, masks: Tensor, full: Tensor) -> tuple[Tensor, ...]:
        """Objects, the best first, from (B, Q, K), masks, (B, Q, H / 4, W / 4), and the same of full size."""
        scores, index = scores.flatten(1).topk(self.max_objects)
        labels, query = index % self.num_classes, (index // self.num_classes)[..., None, None]
        full = full.gather(1, query.expand(-1, -1, *full.shape[2:]))
        inside = full > 0
        area = inside.sum((-2, -1))
        certainty = (full.sigmoid() * inside).sum((-2, -1)) / (area + 1e-6)
        scores = scores * certainty * (labels < self.num_things)
        scores, order = scores.sort(descending=True)
        query = query.gather(1, order[..., None, None])
        masks = masks.gather(1, query.expand(-1, -1, *masks.shape[2:]))
        boxes = bounding_boxes(inside).gather(1, order[..., None].expand(-1, -1, 4))
        return boxes, scores, labels.gather(1, order), masks

    def difference(self, outputs: Sequence[Tensor], image: Tensor) -> float:
        """The worse of :meth:`segments_difference` and :meth:`objects_difference`."""
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
        """How far scores are, in their order, and each mask, in probability, from one of its class.

        Objects whose scores are within 0.001 of the last one's may be others, and do not count. It is 1 if a
        box is not that of its mask, but for pixels that may fall either way.

        Args:
            outputs: Boxes, scores, labels and mask logits.
            expected: What they are compared with.
            size: H and W.
        """
        worst = [(outputs[1] - expected[1]).abs().max()]
        for (boxes, scores, labels, logits), right in zip(zip(*outputs), zip(*expected)):
            _, their_scores, their_labels, their_logits = right
            sure = scores > their_scores[-1] + MARGIN
            for label, mask in zip(labels[sure], logits[sure].sigmoid()):
                distance = (their_logits.sigmoid() - mask).abs().amax((-2, -1))
                worst.append(distance.masked_fill(their_labels != label, 1).min())
            full = scale_masks(logits[None], size)[0]
            inner, outer = (bounding_boxes(full > margin) for margin in (MARGIN, -MARGIN))
            is_empty = (inner == 0).all(1, keepdim=True)
            sign = boxes.new_tensor([1, 1, -1, -1])  # so that an outer box has the smaller numbers
            fits = (boxes * sign >= outer * sign) & ((boxes * sign <= inner * sign) | is_empty)
            worst.append(1 - fits.all().float())
        return max(each.item() for each in worst)

    def segments_difference(self, segments: Tensor, expected: Tensor, image: Tensor) -> float:
        """Share of pixels in other segments, but for those whose masks are as good as tied.

        Args:
            segments: Ids, (B, H, W).
            expected: What they are compared with.
            image: (B, C, H, W).
        """
        model = self.network
        (*_, classes), (*_, masks) = model.panoptic_head(model.extract_feat(self.normalised(image)), None)
        score, label = classes.softmax(-1).max(-1)
        masks = scale_masks(masks, image.shape[-2:]).sigmoid()
        is_kept = ((label != self.num_classes) & (score > self.min_score))[..., None, None]
        best = (masks * score[..., None, None] * is_kept).topk(2, dim=1).values
        tied = (best[:, 0] - best[:, 1] < MARGIN) | (((masks - 0.5).abs() < MARGIN) & is_kept).any(1)
        return ((segments != expected) & ~tied).float().mean().item()


def bounding_boxes(masks: Tensor) -> Tensor:
    """Boxes around masks, (B, N, H, W) -> (B, N, 4), x1, y1, x2, y2 in pixels; zeros if a mask is empty."""
    sides = []
    for dim in (-2, -1):  # columns, then rows
        occupied = masks.any(dim)
        place = torch.arange(occupied.shape[-1], device=masks.device)
        first = torch.where(occupied, place, occupied.shape[-1]).amin(-1)
        last = torch.where(occupied, place + 1, 0).amax(-1)
        sides.append((torch.minimum(first, last), last))
    (left, right), (top, bottom) = sides
    return torch.stack([left, top, right, bottom], -1).float()
