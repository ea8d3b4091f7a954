# Mask2Former on RevCol-H, ADE20K, 896x896 crops, started from mask2former_revcol_h_cocostuff164k.py.
# Published result: 60.4 mIoU, 61.0 with --tta; its recipe is not published.
_base_ = ['_base_/mask2former_large.py', '_base_/ade20k_896x896.py']

model = dict(
    data_preprocessor=_base_.data_preprocessor,
    backbone=dict(
        arch='huge',
        init_cfg=None,
    ),
    decode_head=dict(in_channels=_base_.revcol_channels['huge']),
)
load_from = 'work_dirs/mask2former_revcol_h_cocostuff164k/iter_80000.pth'
train_dataloader = dict(batch_size=1)  # x 16 GPUs, as InternImage-H
