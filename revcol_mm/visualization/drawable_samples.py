"""Prepare data samples for OpenMMLab's visualizers. The samples passed in are not modified."""

import numpy as np
import torch
from mmengine.structures import BaseDataElement, InstanceData, PixelData

LEGIBLE_SIDE = 640  # pixels: small images are enlarged to about this length of their longer side


def without_ignored(sample: BaseDataElement, ignored: int, num_classes: int) -> BaseDataElement:
    """Replace the ignored label in the ground truth by ``num_classes``, which visualizers do not paint.

    Args:
        sample: Data sample of a segmentor.
        ignored: The ignored label.
        num_classes: Number of classes. A label from this number on is not painted anyway.
    """
    if 'gt_sem_seg' not in sample or ignored >= num_classes:
        return sample
    field, sample = sample.gt_sem_seg, sample.clone()  # the clone shares the field
    maps = {key: labels.masked_fill(labels == ignored, num_classes) for key, labels in field.items()}
    sample.set_data(dict(gt_sem_seg=PixelData(metainfo=field.metainfo, **maps)))
    return sample


def without_empty_segments(sample: BaseDataElement, num_classes: int) -> BaseDataElement:
    """Remove a panoptic prediction without segments, on which MMDetection's visualizer fails."""
    if (sample.pred_panoptic_seg.sem_seg != num_classes).any():
        return sample
    sample = sample.clone()
    del sample.pred_panoptic_seg
    return sample


def enlarge(image: np.ndarray, sample: BaseDataElement) -> tuple[np.ndarray, BaseDataElement]:
    """Enlarge a small image together with its annotations and predictions, so that drawn text is legible.

    Args:
        image: (H, W, 3), uint8.
        sample: Its data sample.

    Returns:
        The image, (k H, k W, 3), and a copy of the sample on the CPU, where the integer k >= 1 brings the
        longer side closest to :data:`LEGIBLE_SIDE`. Label maps and masks are enlarged by repeating pixels.
    """
    import cv2

    factor = max(1, round(LEGIBLE_SIDE / max(image.shape[:2])))
    sample = sample.cpu()
    if factor == 1:
        return image, sample

    def repeat(pixels: torch.Tensor | np.ndarray) -> torch.Tensor:
        return torch.as_tensor(pixels).repeat_interleave(factor, -2).repeat_interleave(factor, -1)

    image = cv2.resize(image, None, fx=factor, fy=factor, interpolation=cv2.INTER_CUBIC)
    for name, field in list(sample.items()):
        if isinstance(field, PixelData):
            maps = {key: repeat(pixels) for key, pixels in field.items()}
            sample.set_data({name: PixelData(metainfo=field.metainfo, **maps)})
        elif isinstance(field, InstanceData):
            if 'bboxes' in field:
                field.bboxes = getattr(field.bboxes, 'tensor', field.bboxes) * factor  # unwraps box types
            if 'masks' in field:
                is_array = isinstance(field.masks, torch.Tensor | np.ndarray)  # else BitmapMasks or polygons
                field.masks = repeat(field.masks) if is_array else field.masks.resize(image.shape[:2])
    return image, sample
