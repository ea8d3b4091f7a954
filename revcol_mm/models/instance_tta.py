"""Test-time augmentation for instance segmentation, which MMDetection's DetTTAModel does not support.

Importing this file imports MMDetection, so configs that use it list it in ``custom_imports``.
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
    """Merge the boxes of all views by NMS; every remaining box keeps the mask from its own view.

    Boxes, (n, 4) in pixels of the original image, and masks, (n, H, W) at its size, are flipped back first.

    Args:
        tta_cfg: ``nms``, a config for mmcv's ``batched_nms``, and ``max_per_img``.
        module: The detector.
    """

    def _merge_single_sample(self, data_samples: Sequence[DetDataSample]) -> DetDataSample:
        views = []
        for sample in data_samples:
            instances = sample.pred_instances
            if sample.flip:
                instances.bboxes = bbox_flip(instances.bboxes, sample.ori_shape, sample.flip_direction)
                instances.masks = instances.masks.flip(FLIPPED_AXES[sample.flip_direction])
            views.append(instances)
        merged = InstanceData.cat(views)
        if len(merged):
            dets, kept = batched_nms(merged.bboxes, merged.scores, merged.labels, self.tta_cfg['nms'])
            limit = self.tta_cfg['max_per_img']
            merged = merged[kept[:limit]]
            merged.scores = dets[:limit, -1]  # soft NMS lowers them
        data_samples[0].pred_instances = merged
        return data_samples[0]
