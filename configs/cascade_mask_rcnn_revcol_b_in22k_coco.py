# Cascade Mask R-CNN on RevCol-B, IN-22K weights, COCO, 36 epochs. As published: 55.0 box AP, 47.5 mask AP.
_base_ = ['_base_/cascade_mask_rcnn.py']

model = dict(
    backbone=dict(
        arch='base',
        drop_path_rate=0.4,
        init_cfg=dict(type='Pretrained', checkpoint=_base_.revcol_weights + 'revcol_base_22k.pth'),
    ),
    neck=dict(in_channels=_base_.revcol_channels['base']),
)
optim_wrapper = dict(optimizer=dict(lr=1e-4), paramwise_cfg=dict(decay_rate=0.9))
