# DINO, 5 scales, on RevCol-XL, COCO, 36 epochs, as dino_revcol_l_coco.py.
# IN-22K weights of this size are not published: revcol_xl_in22k.py trains them.
_base_ = ['_base_/dino_5scale.py']

model = dict(
    backbone=dict(
        arch='xlarge',
        drop_path_rate=0.5,
        init_cfg=dict(type='Pretrained', checkpoint='work_dirs/revcol_xl_in22k/epoch_90.pth'),
    ),
    neck=dict(in_channels=_base_.revcol_channels['xlarge']),
)
max_epochs = 36
train_cfg = dict(max_epochs=max_epochs)
param_scheduler = [
    dict(type='MultiStepLR', begin=0, end=max_epochs, by_epoch=True, milestones=[27, 33], gamma=0.1)
]
