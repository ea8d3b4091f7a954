# RevCol-B, IN-22K weights, fine-tuned on ImageNet-1K at 384x384. Published result: 86.7 top-1.
_base_ = ['_base_/imagenet_1k_finetune_384.py']

model = dict(
    backbone=dict(
        arch='base',
        drop_path_rate=0.2,
        init_cfg=dict(type='Pretrained', checkpoint=_base_.revcol_weights + 'revcol_base_22k.pth'),
    )
)
