"""Batches of random images and labels for any model, which need no data set."""

from copy import deepcopy
from typing import Any

import numpy as np
import torch
from mmengine.model import BaseModel
from mmengine.structures import PixelData

from revcol_mm.models.image_channels import image_channels

NUM_OBJECTS = 7  # objects per image, as in COCO
NUM_PROPOSALS = 100
NUM_SEGMENTS = 10  # classes per image, as in ADE20K


def num_classes_of(model: BaseModel) -> int:
    """Return the number of classes of a model's head.

    Raises:
        ValueError: If no module has ``num_classes``.
    """
    for name, module in model.named_modules():
        if 'rpn' not in name and isinstance(getattr(module, 'num_classes', None), int):
            return module.num_classes
    raise ValueError(f'no part of {type(model).__name__} has num_classes')


def synthetic_batch(
    model: BaseModel, scope: str, batch_size: int, height: int, width: int, training: bool = True
) -> dict[str, Any]:
    """Create a batch as a data loader would return it. Every call returns the same batch.

    Args:
        model: The model, which determines the number of classes and image channels.
        scope: The config's ``default_scope``: 'mmdet', 'mmseg' or 'mmpretrain'.
        batch_size: Number of images.
        height, width: Size of the images, in pixels.
        training: Whether the batch is for training. Semi-supervised detectors take other batches in testing.

    Returns:
        'inputs', the uint8 pixels (C, height, width) of each image, and 'data_samples'. Images have 7 objects
        with boxes and masks (mmdet), 10 classes in a grid of 4 x 4 rectangles (mmseg) or one class
        (mmpretrain). Detectors with a semantic branch also get a segmentation map, those with RoI heads but
        no RPN get proposals, trackers get pairs of frames, and semi-supervised detectors get a batch for each
        of their branches.
    """
    num_classes = num_classes_of(model)
    if scope == 'mmdet':
        return _detection_batch(model, num_classes, batch_size, height, width, training)
    generator = torch.Generator().manual_seed(0)
    shape = (batch_size, image_channels(model), height, width)
    inputs = torch.randint(256, shape, dtype=torch.uint8, generator=generator)
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


def _detection_batch(
    model: BaseModel, num_classes: int, batch_size: int, height: int, width: int, training: bool
) -> dict[str, Any]:
    """Create a batch for one of MMDetection's models, depending on its kind."""
    from mmdet.models import BaseMOTModel, SemiBaseDetector
    from mmdet.models.reid import BaseReID
    from mmdet.structures import ReIDDataSample
    from mmdet.testing import demo_mm_inputs, demo_mm_proposals, demo_track_inputs

    shape = (image_channels(model), height, width)
    labels = dict(num_items=[NUM_OBJECTS] * batch_size, with_mask=True)
    if isinstance(model, BaseMOTModel):
        return demo_track_inputs(batch_size, 2, [0], shape, num_classes=num_classes, **labels)
    num_classes = min(getattr(module, 'num_things_classes', num_classes) for module in model.modules())
    labels['num_classes'] = max(num_classes, 2)  # demo_mm_inputs draws labels from 1 on
    if any(name.endswith(('semantic_head', 'panoptic_head')) for name, _ in model.named_modules()):
        labels['with_semantic'] = True
    batch = demo_mm_inputs(batch_size, shape, **labels)
    if isinstance(model, BaseReID):
        samples = [ReIDDataSample(metainfo=sample.metainfo) for sample in batch['data_samples']]
        batch['data_samples'] = [sample.set_gt_label(person) for person, sample in enumerate(samples)]
    elif isinstance(model, SemiBaseDetector) and training:
        for sample in batch['data_samples']:
            sample.set_metainfo(dict(homography_matrix=np.eye(3, dtype=np.float32)))
        branches = ('sup', 'unsup_teacher', 'unsup_student')
        batch = {key: {name: deepcopy(value) for name in branches} for key, value in batch.items()}
    elif hasattr(model, 'roi_head') and not model.with_rpn:
        for sample in batch['data_samples']:
            (sample.proposals,) = demo_mm_proposals([shape], NUM_PROPOSALS)
    return batch
