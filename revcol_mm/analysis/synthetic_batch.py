"""Random images with labels, for any model: batches for timing, of one shape and without a data set."""

from copy import deepcopy
from typing import Any

import numpy as np
import torch
from mmengine.model import BaseModel
from mmengine.structures import PixelData

from revcol_mm.models.image_channels import image_channels

NUM_OBJECTS = 7  # of an image, as in COCO
NUM_PROPOSALS = 100
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


def synthetic_batch(
    model: BaseModel, scope: str, batch_size: int, height: int, width: int, training: bool = True
) -> dict[str, Any]:
    """What a data loader gives, the same at every call.

    Args:
        model: Whose classes the labels are of.
        scope: The config's ``default_scope``: 'mmdet', 'mmseg' or 'mmpretrain'.
        batch_size: Number of images.
        height: Of the images, in pixels.
        width: Of the images, in pixels.
        training: Whether it is a batch to train on. Semi-supervised detectors test on others.

    Returns: 'inputs', uint8 pixels (C, height, width) of each image, C as the model takes, and
        'data_samples'. Images have 7 objects with boxes and masks, or 10 classes in a grid of 4 x 4
        rectangles, or one class. Detectors with a semantic branch get a map of classes, too, those without an
        RPN proposals, trackers pairs of frames, and semi-supervised detectors a batch for each of their
        branches.
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
    """What MMDetection's models take, by their kind."""
    from mmdet.models import BaseMOTModel, SemiBaseDetector
    from mmdet.models.reid import BaseReID
    from mmdet.structures import ReIDDataSample
    from mmdet.testing import demo_mm_inputs, demo_mm_proposals, demo_track_inputs

    shape = (image_channels(model), height, width)
    labels = dict(num_items=[NUM_OBJECTS] * batch_size, with_mask=True)
    if isinstance(model, BaseMOTModel):
        return demo_track_inputs(batch_size, 2, [0], shape, num_classes=num_classes, **labels)
    num_classes = min(getattr(module, 'num_things_classes', num_classes) for module in model.modules())
    labels['num_classes'] = max(num_classes, 2)  # it leaves out class 0
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
