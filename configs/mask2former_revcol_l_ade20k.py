# Mask2Former on RevCol-L, IN-22K weights, ADE20K, 640x640 crops. Head (200 queries) and schedule are those of
# MMSegmentation's Swin-L, layer decay and drop path those of RevCol-L's UPerNet.
_base_ = ['_base_/mask2former.py', '_base_/ade20k_640x640.py']

model = dict(
    data_preprocessor=_base_.data_preprocessor,
    backbone=dict(
        arch='large',
        init_cfg=dict(type='Pretrained', checkpoint=_base_.revcol_weights + 'revcol_large_22k.pth'),
    ),
    decode_head=dict(in_channels=_base_.revcol_channels['large'], num_queries=200),
)
