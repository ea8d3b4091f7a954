"""Test-time augmentation of instance segmentation."""

import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.model import BaseModel
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData

from revcol_mm.models.instance_tta import FLIPPED_AXES, InstanceTTAModel

SIZE = (8, 12)


class Detector(BaseModel):
    forward = None


def view(boxes, scores, flip_direction=None):
    """Return the detections in one view; masks fill the boxes."""
    masks = torch.zeros(len(boxes), *SIZE, dtype=torch.bool)
    for mask, (left, top, right, bottom) in zip(masks, boxes):
        mask[top:bottom, left:right] = True
    found = InstanceData(
        bboxes=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        scores=torch.tensor(scores),
        labels=torch.zeros(len(boxes), dtype=torch.long),
        masks=masks,
    )
    meta = dict(ori_shape=SIZE, flip=flip_direction is not None, flip_direction=flip_direction)
    return DetDataSample(pred_instances=found, metainfo=meta)


@pytest.fixture
def model():
    init_default_scope('mmdet')
    nms = dict(type='nms', iou_threshold=0.5)
    return InstanceTTAModel(tta_cfg=dict(nms=nms, max_per_img=2), module=Detector())


@pytest.mark.parametrize('direction', FLIPPED_AXES)
def test_flipped_detections_and_masks_are_flipped_back(model, direction):
    left, top, right, bottom = box = (1, 2, 5, 4)
    if direction in ('horizontal', 'diagonal'):
        left, right = SIZE[1] - right, SIZE[1] - left
    if direction in ('vertical', 'diagonal'):
        top, bottom = SIZE[0] - bottom, SIZE[0] - top
    views = [view([(8, 5, 11, 7), box], [0.3, 0.5]), view([(left, top, right, bottom)], [0.9], direction)]
    (merged,) = model.merge_preds([views])
    found = merged.pred_instances
    assert found.bboxes.tolist() == [list(box), [8, 5, 11, 7]]
    assert found.scores.tolist() == pytest.approx([0.9, 0.3])
    expected = view([box, (8, 5, 11, 7)], [0, 0]).pred_instances.masks
    assert torch.equal(found.masks, expected)


def test_soft_nms_lowers_scores(model):
    model.tta_cfg['nms'] = dict(type='soft_nms', iou_threshold=0.5, min_score=0.01)
    boxes = [(0, 0, 4, 4), (0, 0, 4, 3)]  # their overlap is 3/4
    (merged,) = model.merge_preds([[view(boxes, [0.9, 0.8])]])
    assert merged.pred_instances.scores.tolist() == pytest.approx([0.9, 0.2])


def test_max_per_img_and_images_without_detections(model):
    boxes = [(0, 0, 2, 2), (4, 4, 6, 6), (8, 0, 10, 2)]
    (many, none) = model.merge_preds([[view(boxes, [0.1, 0.2, 0.3])], [view([], []), view([], [])]])
    assert many.pred_instances.scores.tolist() == pytest.approx([0.3, 0.2])
    assert len(none.pred_instances) == 0 and none.pred_instances.masks.shape == (0, *SIZE)
