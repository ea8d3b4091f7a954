# RevCol-H, pre-trained on 168 M images, fine-tuned on ImageNet-1K at 640x640. Published result: 90.0 top-1.
_base_ = ['_base_/imagenet_1k_finetune_384.py']

model = dict(
    backbone=dict(
        arch='huge',
        drop_path_rate=0.4,
        init_cfg=dict(
            type='Pretrained',
            checkpoint=_base_.revcol_hub + 'classification/revcol_huge_megdata.pth',
        ),
    )
)
train_pipeline = _base_.train_pipeline
train_pipeline[1].update(scale=640)
test_pipeline = _base_.test_pipeline
test_pipeline[1].update(scale=(640, 640))
train_dataloader = dict(batch_size=8, dataset=dict(pipeline=train_pipeline))  # batch size: ours
val_dataloader = dict(batch_size=8, dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader

lr = 4e-5
max_epochs = 20
train_cfg = dict(max_epochs=max_epochs)
optim_wrapper = dict(
    optimizer=dict(lr=lr), clip_grad=dict(max_norm=100.0), paramwise_cfg=dict(decay_rate=0.8)
)
param_scheduler = _base_.param_scheduler
param_scheduler[0].update(T_max=max_epochs, eta_min_ratio=2e-8 / lr, end=max_epochs)
custom_hooks = [dict(type='EMAHook', momentum=1e-4, priority='ABOVE_NORMAL')]
