# DINO, 4 scales, on RevCol-S, IN-1K weights, COCO, 12 epochs. Drop path and layer decay are those of
# RevCol-S's Cascade Mask R-CNN.
_base_ = ['_base_/dino_coco.py']

model = dict(
    backbone=dict(
        arch='small',
        drop_path_rate=0.4,
        init_cfg=dict(type='Pretrained', checkpoint=_base_.revcol_weights + 'revcol_small_1k.pth'),
    ),
    neck=dict(in_channels=_base_.revcol_channels['small'][1:]),
)
