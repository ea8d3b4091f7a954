# DINO, 5 scales, on RevCol-L, IN-22K weights, COCO, 36 epochs as MMDetection's Swin-L. Drop path and layer
# decay are those of RevCol-L's Cascade Mask R-CNN.
_base_ = ['_base_/dino_5scale.py']

model = dict(
    backbone=dict(
        arch='large',
        drop_path_rate=0.5,
        init_cfg=dict(type='Pretrained', checkpoint=_base_.revcol_weights + 'revcol_large_22k.pth'),
    ),
    neck=dict(in_channels=_base_.revcol_channels['large']),
)
max_epochs = 36
train_cfg = dict(max_epochs=max_epochs)
param_scheduler = [
    dict(type='MultiStepLR', begin=0, end=max_epochs, by_epoch=True, milestones=[27, 33], gamma=0.1)
]
