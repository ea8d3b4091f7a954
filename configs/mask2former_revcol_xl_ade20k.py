# Mask2Former on RevCol-XL, ADE20K, 896x896 crops. IN-22K weights of this size are not published;
# revcol_xl_in22k.py trains them.
_base_ = ['_base_/mask2former_large.py', '_base_/ade20k_896x896.py']

model = dict(
    data_preprocessor=_base_.data_preprocessor,
    backbone=dict(
        arch='xlarge',
        init_cfg=dict(type='Pretrained', checkpoint='work_dirs/revcol_xl_in22k/epoch_90.pth'),
    ),
    decode_head=dict(in_channels=_base_.revcol_channels['xlarge']),
)
optim_wrapper = dict(optimizer=dict(lr=2e-5))  # InternImage-H's without pre-training on COCO-Stuff
