# UPerNet on the sample data. All hyper-parameters are ours.
_base_ = ['_base_/upernet.py', '_base_/ade20k_sample.py']

channels = _base_.revcol_channels['nano']
head = dict(channels=64, num_classes=len(_base_.classes), norm_cfg=dict(type='BN', requires_grad=True))
model = dict(
    data_preprocessor=_base_.data_preprocessor,
    backbone=_base_.sample_backbone,
    decode_head=dict(in_channels=channels, **head),
    auxiliary_head=dict(in_channels=channels[2], **head),
    test_cfg=dict(crop_size=_base_.crop_size, stride=(85, 85)),
)
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(lr=1e-3),
    paramwise_cfg=dict(decay_rate=1.0),  # the backbone is not pretrained
)
param_scheduler = _base_.sample_schedule
max_iters = 300
param_scheduler[-1].update(end=max_iters)
train_cfg = dict(max_iters=max_iters, val_interval=max_iters // 3)
default_hooks = dict(logger=dict(interval=20), checkpoint=dict(interval=max_iters))
