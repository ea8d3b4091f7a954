# Mask2Former on RevCol-S, IN-1K weights, COCO panoptic segmentation, 50 epochs. Drop path is that of
# RevCol-S's Cascade Mask R-CNN.
_base_ = ['_base_/mask2former_coco_panoptic.py']

model = dict(
    backbone=dict(
        arch='small',
        drop_path_rate=0.4,
        init_cfg=dict(type='Pretrained', checkpoint=_base_.revcol_weights + 'revcol_small_1k.pth'),
    ),
    panoptic_head=dict(in_channels=_base_.revcol_channels['small']),
)
