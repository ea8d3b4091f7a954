# Mask2Former on RevCol-B, IN-22K weights, ADE20K, 640x640 crops, 160k iterations, 8 GPUs x 2 images. RevCol's
# Mask2Former recipe is not published: head and schedule are those of MMSegmentation's Swin-B, layer decay and
# drop path are those of RevCol-B's published UPerNet.
_base_ = ['_base_/mask2former.py', '_base_/ade20k_640x640.py']

model = dict(
    data_preprocessor=_base_.data_preprocessor,
    backbone=dict(
        arch='base',
        init_cfg=dict(type='Pretrained', checkpoint=_base_.revcol_weights + 'revcol_base_22k.pth'),
    ),
    decode_head=dict(in_channels=_base_.revcol_channels['base']),
)
