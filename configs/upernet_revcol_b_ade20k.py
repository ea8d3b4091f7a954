# UPerNet on RevCol-B, IN-1K weights, ADE20K, 512x512 crops. Published result: 49.0 mIoU. The stride of 341 is
# that of the paper; the released config has 426.
_base_ = ['_base_/upernet.py', '_base_/ade20k_512x512.py']

channels = _base_.revcol_channels['base']
model = dict(
    data_preprocessor=_base_.data_preprocessor,
    backbone=dict(
        arch='base',
        init_cfg=dict(type='Pretrained', checkpoint=_base_.revcol_weights + 'revcol_base_1k.pth'),
    ),
    decode_head=dict(in_channels=channels),
    auxiliary_head=dict(in_channels=channels[2]),
)
optim_wrapper = dict(paramwise_cfg=dict(decay_rate=1.0))
