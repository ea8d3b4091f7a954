# Cascade Mask R-CNN on RevCol-S, IN-1K weights, COCO, 36 epochs. Published result: 52.6 box AP, 45.5 mask AP.
_base_ = ['_base_/cascade_mask_rcnn_coco.py']

model = dict(
    backbone=dict(
        arch='small',
        drop_path_rate=0.4,
        init_cfg=dict(type='Pretrained', checkpoint=_base_.revcol_weights + 'revcol_small_1k.pth'),
    ),
    neck=dict(in_channels=_base_.revcol_channels['small']),
)
