# Classification of the digits of the sample data with intermediate supervision. All hyper-parameters are
# ours.
_base_ = ['_base_/imagenet_1k.py', '_base_/sample.py']

num_classes = len(_base_.digits)
model = dict(
    backbone=_base_.sample_backbone,
    num_classes=num_classes,
    data_preprocessor=dict(batch_augments=None),
)
resize = dict(type='Resize', scale=(64, 64), **_base_.bicubic)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='RandomResizedCrop', scale=64, crop_ratio_range=(0.6, 1.0), **_base_.bicubic),
    dict(type='PackInputs'),  # no flip: a mirrored digit is not the same digit
]
test_pipeline = [dict(type='LoadImageFromFile'), resize, dict(type='PackInputs')]
data_root = 'data/sample/imagenet'
dataset = dict(_delete_=True, type='CustomDataset', data_root=data_root)
loader = dict(batch_size=32, num_workers=0, persistent_workers=False, pin_memory=False)
train_dataloader = dict(
    sampler=dict(type='InfiniteSampler'),
    dataset=dict(data_prefix='train', pipeline=train_pipeline, **dataset),
    **loader,
)
val_dataloader = dict(dataset=dict(data_prefix='val', pipeline=test_pipeline, **dataset), **loader)
test_dataloader = val_dataloader
val_evaluator = dict(topk=(1,))
test_evaluator = val_evaluator

optim_wrapper = dict(type='OptimWrapper')
param_scheduler = _base_.sample_schedule
max_iters = param_scheduler[-1].end
train_cfg = dict(_delete_=True, type='IterBasedTrainLoop', max_iters=max_iters, val_interval=max_iters // 5)
auto_scale_lr = dict(enable=False)
custom_hooks = []
log_processor = dict(by_epoch=False)
default_hooks = dict(
    logger=dict(interval=20, log_metric_by_epoch=False),
    checkpoint=dict(by_epoch=False, interval=max_iters),
    visualization=dict(interval=20, rescale_factor=8),
)
