# DINO, 4 scales, on RevCol-B, IN-22K weights, COCO, 12 epochs. Drop path and layer decay are those of
# RevCol-B's Cascade Mask R-CNN.
_base_ = ['_base_/dino_coco.py']

model = dict(
    backbone=dict(
        arch='base',
        drop_path_rate=0.4,
        init_cfg=dict(type='Pretrained', checkpoint=_base_.revcol_weights + 'revcol_base_22k.pth'),
    ),
    neck=dict(in_channels=_base_.revcol_channels['base'][1:]),
)
optim_wrapper = dict(paramwise_cfg=dict(decay_rate=0.9))
