"""Mask2Former's head for semantic segmentation, with sliding windows and an ignore label.

Importing this file imports MMSegmentation and MMDetection, so configs that use it list it in
``custom_imports``.
"""

from typing import Any, Sequence

from mmengine.registry import MODELS
from mmengine.structures import InstanceData
from mmseg.models.decode_heads.mask2former_head import Mask2FormerHead
from torch import Tensor, nn

IGNORED = -10_000  # marks ignored pixels in target masks of 0 and 1; interpolated with 1, it stays negative


@MODELS.register_module()
class SemanticMask2FormerHead(Mask2FormerHead):
    """MMSegmentation's Mask2FormerHead with sliding-window inference and an ignore label for mask losses.

    Weights are compatible. With ``test_cfg=dict(mode='slide', ...)``, the prediction of a window is resized
    to the window; MMSegmentation's head resizes it to the whole image.

    Args:
        args, kwargs: Arguments of :class:`mmseg.models.Mask2FormerHead`.
        leave_out_ignored: Exclude pixels with the label ``ignore_index`` from the mask losses, like the other
            heads of MMSegmentation. By default, as in the official Mask2Former, ignored pixels lie outside of
            every target mask, so the model learns that they belong to no class. The matching of queries and
            masks is not affected.
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
        for sample, meta in zip(batch_data_samples, metas if self.leave_out_ignored else ()):
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
        """Return class scores, (B, K, H, W), for images or, in mode 'slide', for one window of each image."""
        if test_cfg.get('mode') == 'slide':
            window = batch_img_metas[0]['img_shape']  # set by EncoderDecoder.slide_inference
            batch_img_metas = [dict(meta, img_shape=window, pad_shape=window) for meta in batch_img_metas]
        return super().predict(x, batch_img_metas, test_cfg)


def _leave_out_ignored(loss: nn.Module, args: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Make predictions at ignored points confident and correct, so that loss and gradient are zero there."""
    logits, targets = args
    ignored = targets < 0
    return logits.masked_fill(ignored, IGNORED), targets.masked_fill(ignored, 0)
