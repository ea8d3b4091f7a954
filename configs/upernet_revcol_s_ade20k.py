# UPerNet on RevCol-S, IN-1K weights, ADE20K, 512x512 crops. Published result: 47.9 mIoU.
_base_ = ['_base_/upernet.py', '_base_/ade20k_512x512.py']

channels = _base_.revcol_channels['small']
model = dict(
    data_preprocessor=_base_.data_preprocessor,
    backbone=dict(
        arch='small',
        init_cfg=dict(type='Pretrained', checkpoint=_base_.revcol_weights + 'revcol_small_1k.pth'),
    ),
    decode_head=dict(in_channels=channels),
    auxiliary_head=dict(in_channels=channels[2]),
)
optim_wrapper = dict(paramwise_cfg=dict(decay_rate=1.0))
