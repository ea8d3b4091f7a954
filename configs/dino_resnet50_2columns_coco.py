# DINO on 2 reversible columns of ResNet-50; otherwise like dino_revcol_t_coco.py.
_base_ = ['dino_revcol_t_coco.py', '_base_/columns_resnet50.py']

model = dict(
    backbone=dict(out_indices=(1, 2, 3), **_base_.columns),
    neck=dict(in_channels=_base_.columns_channels[1:]),
)
