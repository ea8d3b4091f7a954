# Mask2Former on RevCol-T, IN-1K weights, ADE20K, 512x512 crops. Head and schedule are those of
# MMSegmentation's Swin-T, layer decay and drop path those of RevCol-T's UPerNet.
_base_ = ['_base_/mask2former.py', '_base_/ade20k_512x512.py']

model = dict(
    data_preprocessor=_base_.data_preprocessor,
    backbone=dict(
        arch='tiny',
        init_cfg=dict(type='Pretrained', checkpoint=_base_.revcol_weights + 'revcol_tiny_1k.pth'),
    ),
    decode_head=dict(in_channels=_base_.revcol_channels['tiny']),
)
optim_wrapper = dict(paramwise_cfg=dict(decay_rate=1.0))
