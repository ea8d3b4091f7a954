# A classifier on RevCol in a user's own config, as small as it gets, on the sample data.
_base_ = ['../../configs/_base_/default_runtime.py']

default_scope = 'mmpretrain'
model = dict(
    type='ImageClassifier',
    backbone=dict(type='RevCol', arch='nano', out_indices=(-1,)),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='LinearClsHead',
        num_classes=10,
        in_channels=256,
        loss=dict(type='CrossEntropyLoss', loss_weight=1.0),
    ),
)
data_preprocessor = dict(
    num_classes=10, mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True
)
pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(64, 64)),
    dict(type='PackInputs'),
]
train_dataloader = dict(
    batch_size=8,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        type='CustomDataset',
        data_root='data/sample/imagenet',
        data_prefix='train',
        pipeline=pipeline,
    ),
)
val_dataloader = dict(
    batch_size=8,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='CustomDataset',
        data_root='data/sample/imagenet',
        data_prefix='val',
        pipeline=pipeline,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type='Accuracy', topk=(1,))
test_evaluator = val_evaluator
visualizer = dict(type='UniversalVisualizer', vis_backends=_base_.vis_backends)
default_hooks = dict(
    checkpoint=dict(by_epoch=False, interval=2),
    logger=dict(log_metric_by_epoch=False, interval=1),
    visualization=dict(type='VisualizationHook', enable=False),
)
log_processor = dict(by_epoch=False)
train_cfg = dict(type='IterBasedTrainLoop', max_iters=4, val_interval=4)
val_cfg = dict()
test_cfg = dict()
optim_wrapper = dict(
    optimizer=dict(type='AdamW', lr=1e-4, weight_decay=0.05),
    constructor='LayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(decay_rate=0.9),
)
