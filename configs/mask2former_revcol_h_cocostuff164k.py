# Mask2Former on RevCol-H, COCO-Stuff-164k, 896x896 crops: the pre-training for
# mask2former_revcol_h_ade20k.py.
_base_ = ['_base_/mask2former_large.py', '_base_/cocostuff164k_896x896.py']

model = dict(
    data_preprocessor=_base_.data_preprocessor,
    backbone=dict(
        arch='huge',
        init_cfg=dict(
            type='Pretrained', checkpoint=_base_.revcol_hub + 'classification/revcol_huge_megdata.pth'
        ),
    ),
    decode_head=dict(
        in_channels=_base_.revcol_channels['huge'],
        num_classes=171,
        loss_cls=dict(class_weight=[1.0] * 171 + [0.1]),
    ),
)
optim_wrapper = dict(optimizer=dict(lr=2e-5))  # InternImage-H's on COCO-Stuff
train_dataloader = dict(batch_size=1)  # x 16 GPUs, as InternImage-H
