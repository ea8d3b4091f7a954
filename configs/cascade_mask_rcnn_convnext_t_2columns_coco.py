# Cascade Mask R-CNN on 2 reversible columns of ConvNeXt-T; otherwise like cascade_mask_rcnn_revcol_t_coco.py.
_base_ = ['cascade_mask_rcnn_revcol_t_coco.py', '_base_/columns_convnext_t.py']

model = dict(backbone=_base_.columns, neck=dict(in_channels=_base_.columns_channels))
