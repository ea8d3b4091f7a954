# UPerNet on RevCol-T, IN-1K weights, ADE20K, 512x512 crops. Published result: 47.4 mIoU.
_base_ = ['_base_/upernet.py', '_base_/ade20k_512x512.py']

channels = _base_.revcol_channels['tiny']
model = dict(
    data_preprocessor=_base_.data_preprocessor,
    backbone=dict(
        arch='tiny',
        init_cfg=dict(type='Pretrained', checkpoint=_base_.revcol_weights + 'revcol_tiny_1k.pth'),
    ),
    decode_head=dict(in_channels=channels),
    auxiliary_head=dict(in_channels=channels[2]),
)
optim_wrapper = dict(optimizer=dict(lr=6e-5), paramwise_cfg=dict(decay_rate=1.0))
