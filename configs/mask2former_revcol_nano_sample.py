# `make demo`: Mask2Former on the sample data. All hyper-parameters are ours.
_base_ = ['_base_/mask2former.py', '_base_/mask2former_nano_head.py', '_base_/ade20k_sample.py']

num_classes = len(_base_.classes)
model = dict(
    data_preprocessor=_base_.data_preprocessor,
    backbone=_base_.sample_backbone,
    decode_head=dict(
        in_channels=_base_.revcol_channels['nano'],
        num_classes=num_classes,
        loss_cls=dict(class_weight=[1.0] * num_classes + [0.1]),
        train_cfg=dict(num_points=512),
        **_base_.mask2former_nano_head,
    ),
)
optim_wrapper = _base_.mask2former_nano_optim_wrapper
param_scheduler = _base_.sample_schedule
max_iters = param_scheduler[-1].end
train_cfg = dict(max_iters=max_iters, val_interval=max_iters)
default_hooks = dict(logger=dict(interval=20), checkpoint=dict(interval=max_iters))
