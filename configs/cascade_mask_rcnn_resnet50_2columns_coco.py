# Cascade Mask R-CNN on 2 reversible columns of ResNet-50; otherwise like cascade_mask_rcnn_revcol_t_coco.py.
_base_ = ['cascade_mask_rcnn_revcol_t_coco.py', '_base_/columns_resnet50.py']

model = dict(backbone=_base_.columns, neck=dict(in_channels=_base_.columns_channels))
