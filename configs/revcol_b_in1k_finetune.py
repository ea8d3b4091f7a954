# RevCol-B, IN-22K weights, fine-tuned on ImageNet-1K at 224x224. Published result: 85.6 top-1.
_base_ = ['_base_/imagenet_1k_finetune.py']

model = dict(
    backbone=dict(
        arch='base',
        drop_path_rate=0.2,
        init_cfg=dict(type='Pretrained', checkpoint=_base_.revcol_weights + 'revcol_base_22k.pth'),
    )
)
