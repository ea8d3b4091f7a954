# Cascade Mask R-CNN on RevCol-B, IN-1K weights, COCO, 36 epochs. Published result: 53.0 box AP, 45.9 mask AP.
_base_ = ['_base_/cascade_mask_rcnn_coco.py']

model = dict(
    backbone=dict(
        arch='base',
        drop_path_rate=0.4,
        init_cfg=dict(type='Pretrained', checkpoint=_base_.revcol_weights + 'revcol_base_1k.pth'),
    ),
    neck=dict(in_channels=_base_.revcol_channels['base']),
)
optim_wrapper = dict(paramwise_cfg=dict(decay_rate=0.9))
