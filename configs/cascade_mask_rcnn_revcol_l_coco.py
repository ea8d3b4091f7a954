# Cascade Mask R-CNN on RevCol-L, IN-22K weights, COCO, 36 epochs. Published result: 55.9 box AP, 48.4 mask
# AP.
_base_ = ['_base_/cascade_mask_rcnn_coco.py']

model = dict(
    backbone=dict(
        arch='large',
        drop_path_rate=0.5,
        init_cfg=dict(type='Pretrained', checkpoint=_base_.revcol_weights + 'revcol_large_22k.pth'),
    ),
    neck=dict(in_channels=_base_.revcol_channels['large']),
)
optim_wrapper = dict(optimizer=dict(lr=1e-4))
