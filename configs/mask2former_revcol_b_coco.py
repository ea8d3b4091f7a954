# Mask2Former on RevCol-B, IN-22K weights, COCO instance segmentation, 50 epochs. Drop path is that of
# RevCol-B's Cascade Mask R-CNN.
_base_ = ['_base_/mask2former_coco.py']

model = dict(
    backbone=dict(
        arch='base',
        drop_path_rate=0.4,
        init_cfg=dict(type='Pretrained', checkpoint=_base_.revcol_weights + 'revcol_base_22k.pth'),
    ),
    panoptic_head=dict(in_channels=_base_.revcol_channels['base']),
)
