"""Base of the detectors that are exported: always N boxes, padded with boxes of score 0.

Shapes: B batch, C, H and W channels, height and width of the images, N boxes.
"""

from typing import Sequence

import torch
from torch import Tensor
from torchvision.ops import box_iou

from revcol_mm.any_module import AnyModule
from revcol_mm.models.image_channels import image_channels

from .image_graph import ImageGraph

DETECTIONS = {
    'boxes': 'float32, (B, N, 4): x1, y1, x2, y2 in pixels, the best first',
    'scores': 'float32, (B, N): 0 where there is no box',
    'labels': 'int64, (B, N): classes',
}
MASKS = {'masks': 'float32, (B, N, h, w): probabilities in h x w parts of each box'}
PROBE_SIZE = 256  # height and width of the image from which the strides are measured


class DetectionGraph(ImageGraph):
    """A detector on images that are not padded.

    Args:
        model: Detector of MMDetection.
        has_masks: Whether it also returns 'masks'.
        min_places: Smallest number of pixels that all levels must have together.
    """

    tolerance = 1e-3  # in the scores of the N best; which these are depends on rounding

    def __init__(self, model: AnyModule, has_masks: bool = False, min_places: int = 1) -> None:
        super().__init__(model.data_preprocessor, model, DETECTIONS | (MASKS if has_masks else {}))
        param = next(model.parameters())
        with torch.no_grad():
            maps = model.extract_feat(param.new_zeros(1, image_channels(model), PROBE_SIZE, PROBE_SIZE))
        strides = [PROBE_SIZE // feature.shape[-1] for feature in maps]
        self.min_side = 2 * max(strides)  # torch.export would specialise on a level that is one pixel wide
        while sum((self.min_side // stride) ** 2 for stride in strides) < min_places:
            self.min_side += max(strides)

    def difference(self, outputs: Sequence[Tensor], image: Tensor) -> float:
        """Return the largest of three errors of an exported file.

        They are the error of the sorted scores; for each box, 1 - its largest IoU with a box of the same
        class; and the error of its mask. Boxes whose score is within 0.001 of the last score are skipped,
        since which of them are among the N best may depend on rounding.
        """
        expected = self(image)
        worst = [(outputs[1] - expected[1]).abs().max()]
        for actual, right in zip(zip(*outputs), zip(*expected)):
            boxes, scores, labels, *masks = actual
            expected_boxes, expected_scores, expected_labels, *expected_masks = right
            certain = (scores > expected_scores[-1] + 1e-3) & (boxes[:, 2:] > boxes[:, :2]).all(1)
            if not certain.any():
                continue
            overlaps = box_iou(boxes, expected_boxes).nan_to_num() * (labels[:, None] == expected_labels)
            overlap, index = overlaps[certain].max(1)
            worst.append((1 - overlap).max())
            if masks:
                worst.append((masks[0][certain] - expected_masks[0][index]).abs().max())
        return max(each.item() for each in worst)
