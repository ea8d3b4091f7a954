# RevCol-L, IN-22K weights, fine-tuned on ImageNet-1K at 384x384. Published result: 87.6 top-1.
_base_ = ['_base_/imagenet_1k_finetune_384.py']

model = dict(
    backbone=dict(
        arch='large',
        drop_path_rate=0.3,
        init_cfg=dict(type='Pretrained', checkpoint=_base_.revcol_weights + 'revcol_large_22k.pth'),
    )
)
lr = 5e-5
optim_wrapper = dict(optimizer=dict(lr=lr), paramwise_cfg=dict(decay_rate=0.8))
param_scheduler = _base_.param_scheduler
param_scheduler[0].update(eta_min_ratio=2e-7 / lr)
