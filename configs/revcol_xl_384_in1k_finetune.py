# RevCol-XL, IN-22K weights, fine-tuned on ImageNet-1K at 384x384. Published result: 88.2 top-1. The
# pre-trained weights are not published; revcol_xl_in22k.py trains them.
_base_ = ['_base_/imagenet_1k_finetune_384.py']

model = dict(
    backbone=dict(
        arch='xlarge',
        drop_path_rate=0.4,
        init_cfg=dict(type='Pretrained', checkpoint='work_dirs/revcol_xl_in22k/epoch_90.pth'),
    )
)
lr = 2e-5
optim_wrapper = dict(optimizer=dict(lr=lr), paramwise_cfg=dict(decay_rate=0.8))
param_scheduler = _base_.param_scheduler
param_scheduler[0].update(eta_min_ratio=2e-7 / lr)
custom_hooks = [dict(type='EMAHook', momentum=1e-4, priority='ABOVE_NORMAL')]
