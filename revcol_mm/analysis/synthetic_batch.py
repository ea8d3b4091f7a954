"""Random images with labels, for any model: batches for timing, of one shape and without a data set."""

from typing import Any

import torch
from mmengine.model import BaseModel
from mmengine.structures import PixelData

NUM_OBJECTS = 7  # of an image, as in COCO
NUM_SEGMENTS = 10  # classes in an image, as in ADE20K


def num_classes_of(model: BaseModel) -> int:
    """Number of classes that a model's head tells apart.

    Raises:
        ValueError: If no head says.
    """
    for name, module in model.named_modules():
        if 'rpn' not in name and isinstance(getattr(module, 'num_classes', None), int):
            return module.num_classes
    raise ValueError(f'no part of {type(model).__name__} has num_classes')


def synthetic_batch(model: BaseModel, scope: str, batch_size: int, height: int, width: int) -> dict[str, Any]:
    """What a data loader gives, the same at every call.

    Args:
        model: Whose classes the labels are of.
        scope: The config's ``default_scope``: 'mmdet', 'mmseg' or 'mmpretrain'.
        batch_size: Number of images.
        height: Of the images, in pixels.
        width: Of the images, in pixels.

    Returns: 'inputs', uint8 pixels (3, height, width) of each image, and 'data_samples'. Images have 7
        objects with boxes and masks, or 10 classes in a grid of 4 x 4 rectangles, or one class.
    """
    num_classes = num_classes_of(model)
    if scope == 'mmdet':
        from mmdet.testing import demo_mm_inputs

        return demo_mm_inputs(
            batch_size,
            (3, height, width),
            num_items=[NUM_OBJECTS] * batch_size,
            num_classes=max(num_classes, 2),  # it leaves out class 0
            with_mask=True,
        )
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randint(256, (batch_size, 3, height, width), dtype=torch.uint8, generator=generator)
    meta = dict(img_shape=(height, width), ori_shape=(height, width))
    if scope == 'mmseg':
        from mmseg.structures import SegDataSample

        segments = torch.arange(16).view(4, 4) % min(num_classes, NUM_SEGMENTS)
        rows, columns = (torch.arange(side) * 4 // side for side in (height, width))
        label_map = PixelData(data=segments[rows][:, columns][None])
        samples = [SegDataSample(gt_sem_seg=label_map.clone(), metainfo=meta) for _ in inputs]
    else:
        from mmpretrain.structures import DataSample

        samples = [DataSample(metainfo=meta).set_gt_label(index % num_classes) for index in range(batch_size)]
    return dict(inputs=list(inputs), data_samples=samples)
