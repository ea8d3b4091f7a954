# UPerNet on RevCol-B, IN-22K weights, ADE20K, 640x640 crops. Published result: 52.7 mIoU.
_base_ = ['_base_/upernet.py', '_base_/ade20k_640x640.py']

channels = _base_.revcol_channels['base']
model = dict(
    data_preprocessor=_base_.data_preprocessor,
    backbone=dict(
        arch='base',
        init_cfg=dict(type='Pretrained', checkpoint=_base_.revcol_weights + 'revcol_base_22k.pth'),
    ),
    decode_head=dict(in_channels=channels),
    auxiliary_head=dict(in_channels=channels[2]),
    test_cfg=dict(crop_size=_base_.crop_size, stride=(426, 426)),
)
