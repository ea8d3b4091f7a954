# Cascade Mask R-CNN on RevCol-T, IN-1K weights, COCO, 36 epochs. Published result: 50.8 box AP, 44.0 mask AP.
_base_ = ['_base_/cascade_mask_rcnn_coco.py']

model = dict(
    backbone=dict(
        arch='tiny',
        drop_path_rate=0.3,
        init_cfg=dict(type='Pretrained', checkpoint=_base_.revcol_weights + 'revcol_tiny_1k.pth'),
    ),
    neck=dict(in_channels=_base_.revcol_channels['tiny']),
)
