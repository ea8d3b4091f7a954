"""Mask2Former's head for semantic segmentation, with sliding windows and an ignore label.

MMSegmentation and MMDetection are imported with this file: a config that uses it names it in its
``custom_imports``.
"""

from typing import Any, Sequence

from mmengine.registry import MODELS
from mmengine.structures import InstanceData
from mmseg.models.decode_heads.mask2former_head import Mask2FormerHead
from torch import Tensor, nn

IGNORED = -10_000  # instead of 0 or 1 in a mask that is to be learned; interpolated, it still is negative


@MODELS.register_module()
class SemanticMask2FormerHead(Mask2FormerHead):
    """MMSegmentation's Mask2FormerHead, with the same weights, and what it lacks.

    ``test_cfg=dict(mode='slide', ...)`` works on images beyond one window: a prediction is scaled to its
    window, where MMSegmentation's is scaled to the whole image.

    Args:
        args, kwargs: Those of :class:`mmseg.models.Mask2FormerHead`.
        leave_out_ignored: Leave pixels with the label ``ignore_index`` out of the loss of masks, as
            MMSegmentation's other heads do. By default, as in the official Mask2Former, they are outside of
            every mask, so that the model learns that they are nothing. (Which query learns which mask is
            decided so either way.)
    """

    def __init__(self, *args: Any, leave_out_ignored: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.leave_out_ignored = leave_out_ignored
        if leave_out_ignored:
            for loss in (self.loss_mask, self.loss_dice):
                loss.register_forward_pre_hook(_leave_out_ignored)

    def _seg_data_to_instance_data(
        self, batch_data_samples: Sequence[Any]
    ) -> tuple[list[InstanceData], list[dict]]:
        instances, metas = super()._seg_data_to_instance_data(batch_data_samples)
        for sample, meta in zip(batch_data_samples, metas):
            meta['ignored'] = sample.gt_sem_seg.data == self.ignore_index
        return instances, metas

    def _get_targets_single(
        self, cls_score: Tensor, mask_pred: Tensor, gt_instances: InstanceData, img_meta: dict
    ) -> tuple:
        labels, label_weights, masks, *others = super()._get_targets_single(
            cls_score, mask_pred, gt_instances, img_meta
        )
        if self.leave_out_ignored:
            masks = masks.masked_fill(img_meta['ignored'], IGNORED)
        return labels, label_weights, masks, *others

    def predict(self, x: Sequence[Tensor], batch_img_metas: list[dict], test_cfg: dict) -> Tensor:
        """Scores of every class, (B, K, H, W), of the images or, in mode 'slide', of a window of them."""
        if test_cfg.get('mode') == 'slide':
            window = batch_img_metas[0]['img_shape']  # where EncoderDecoder.slide_inference tells it
            batch_img_metas = [dict(meta, img_shape=window, pad_shape=window) for meta in batch_img_metas]
        return super().predict(x, batch_img_metas, test_cfg)


def _leave_out_ignored(loss: nn.Module, args: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Make predictions at ignored points right beyond doubt, which takes them out of loss and gradient."""
    logits, targets = args
    ignored = targets < 0
    return logits.masked_fill(ignored, IGNORED), targets.masked_fill(ignored, 0)
