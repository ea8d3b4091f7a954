# ImageNet-1K from scratch at 224x224, 300 epochs, with intermediate supervision. Unless a comment says
# otherwise, values are those of RevCol's official `configs/revcol_*_1k.yaml` and code.
_base_ = ['default_runtime.py', 'revcol.py']

default_scope = 'mmpretrain'
data_root = 'data/imagenet'
mean = [123.675, 116.28, 103.53]
std = [58.395, 57.12, 57.375]
model = dict(
    type='RevColClassifier',
    backbone=dict(type='RevCol', save_memory=True),  # as published; see README.md for the memory
    num_classes=1000,
    supervision=dict(reconstruction_weight=3.0, classification_weight=0.7),
    label_smoothing=0.1,
    data_preprocessor=dict(
        mean=mean,
        std=std,
        to_rgb=True,
        batch_augments=dict(augments=[dict(type='Mixup', alpha=0.8), dict(type='CutMix', alpha=1.0)]),
    ),
)
bicubic = dict(backend='pillow', interpolation='bicubic')
# The published colour jitter of 0.4 is omitted: timm, which the official code uses, ignores it when
# RandAugment is on. Mean and standard deviation are reversed below because images are BGR in the pipeline.
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='RandomResizedCrop', scale=224, **bicubic),
    dict(type='RandomFlip', prob=0.5),
    dict(
        type='RandAugment',
        policies='timm_increasing',
        num_policies=2,
        total_level=10,
        magnitude_level=9,
        magnitude_std=0.5,
        hparams=dict(pad_val=[round(x) for x in mean[::-1]], interpolation='bicubic'),
    ),
    dict(
        type='RandomErasing',
        erase_prob=0.25,
        mode='rand',
        min_area_ratio=0.02,
        max_area_ratio=1 / 3,
        fill_color=mean[::-1],
        fill_std=std[::-1],
    ),
    dict(type='PackInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='ResizeEdge', scale=256, edge='short', **bicubic),
    dict(type='CenterCrop', crop_size=224),
    dict(type='PackInputs'),
]
train_dataloader = dict(
    batch_size=128,  # x 8 GPUs = 1024
    num_workers=6,
    persistent_workers=True,
    pin_memory=True,
    drop_last=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(type='ImageNet', data_root=data_root, split='train', pipeline=train_pipeline),
)
val_dataloader = dict(
    batch_size=128,
    num_workers=6,
    persistent_workers=True,
    pin_memory=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(type='ImageNet', data_root=data_root, split='val', pipeline=test_pipeline),
)
test_dataloader = val_dataloader
val_evaluator = dict(type='Accuracy', topk=(1, 5))
test_evaluator = val_evaluator
visualizer = dict(type='UniversalVisualizer', vis_backends=_base_.vis_backends)

lr = 1e-3
max_epochs = 300
warmup_epochs = 20
train_cfg = dict(by_epoch=True, max_epochs=max_epochs, val_interval=1)
val_cfg = dict()
test_cfg = dict()
optim_wrapper = dict(
    type='AmpOptimWrapper',
    optimizer=dict(type='AdamW', lr=lr, weight_decay=0.05, betas=(0.9, 0.999), eps=1e-8),
    constructor='LayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(decay_rate=1.0),
)
# The final learning rate is a ratio, so that it is scaled with the batch size and layer decay, too.
param_scheduler = [
    dict(
        type='LinearLR',
        start_factor=1e-5 / lr,
        by_epoch=True,
        begin=0,
        end=warmup_epochs,
        convert_to_iter_based=True,
    ),
    dict(
        type='CosineAnnealingLR',
        T_max=max_epochs - warmup_epochs,
        eta_min_ratio=1e-6 / lr,
        by_epoch=True,
        begin=warmup_epochs,
        end=max_epochs,
        convert_to_iter_based=True,
    ),
]
auto_scale_lr = dict(enable=True, base_batch_size=1024)  # as in the official code
custom_hooks = [dict(type='EMAHook', momentum=1e-4, priority='ABOVE_NORMAL')]
default_hooks = dict(
    checkpoint=dict(interval=1, save_best='accuracy/top1'),
    visualization=dict(type='VisualizationHook', enable=True, interval=2000),  # for TensorBoard
)
