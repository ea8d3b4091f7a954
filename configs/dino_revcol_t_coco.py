# DINO, 4 scales, on RevCol-T, IN-1K weights, COCO, 12 epochs. Drop path and layer decay are those of
# RevCol-T's Cascade Mask R-CNN.
_base_ = ['_base_/dino_coco.py']

model = dict(
    backbone=dict(
        arch='tiny',
        drop_path_rate=0.3,
        init_cfg=dict(type='Pretrained', checkpoint=_base_.revcol_weights + 'revcol_tiny_1k.pth'),
    ),
    neck=dict(in_channels=_base_.revcol_channels['tiny'][1:]),
)
