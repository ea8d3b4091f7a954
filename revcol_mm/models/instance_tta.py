"""Test-time augmentation of instance segmentation, which MMDetection's DetTTAModel refuses.

MMDetection is imported with this file: a config that uses it names it in its ``custom_imports``.
"""

from typing import Sequence

from mmcv.ops import batched_nms
from mmdet.models import DetTTAModel
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import bbox_flip
from mmengine.registry import MODELS
from mmengine.structures import InstanceData

FLIPPED_AXES = dict(horizontal=[-1], vertical=[-2], diagonal=[-2, -1])


@MODELS.register_module()
class InstanceTTAModel(DetTTAModel):
    """Merges the boxes of all views by NMS; every one that stays has the mask of the view it was found in.

    Boxes, (n, 4) in pixels of the original image, and masks, (n, H, W) of its size, are flipped back first.

    Args:
        tta_cfg: ``nms``, as of mmcv's ``batched_nms``, and ``max_per_img``.
        module: The detector.
    """

    def _merge_single_sample(self, data_samples: Sequence[DetDataSample]) -> DetDataSample:
        views = []
        for sample in data_samples:
            found = sample.pred_instances
            if sample.flip:
                found.bboxes = bbox_flip(found.bboxes, sample.ori_shape, sample.flip_direction)
                found.masks = found.masks.flip(FLIPPED_AXES[sample.flip_direction])
            views.append(found)
        merged = InstanceData.cat(views)
        if len(merged):
            _, kept = batched_nms(merged.bboxes, merged.scores, merged.labels, self.tta_cfg['nms'])
            merged = merged[kept[: self.tta_cfg['max_per_img']]]
        data_samples[0].pred_instances = merged
        return data_samples[0]
