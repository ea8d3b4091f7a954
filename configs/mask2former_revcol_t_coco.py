# Mask2Former on RevCol-T, IN-1K weights, COCO instance segmentation, 50 epochs. Drop path is that of
# RevCol-T's Cascade Mask R-CNN.
_base_ = ['_base_/mask2former_coco.py']

model = dict(
    backbone=dict(
        arch='tiny',
        drop_path_rate=0.3,
        init_cfg=dict(type='Pretrained', checkpoint=_base_.revcol_weights + 'revcol_tiny_1k.pth'),
    ),
    panoptic_head=dict(in_channels=_base_.revcol_channels['tiny']),
)
