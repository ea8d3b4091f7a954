# UPerNet with RevCol nano on CamVid, from scratch; see docs/real_data.md. All hyper-parameters are ours.
_base_ = ['_base_/upernet.py', '_base_/camvid.py']

channels = _base_.revcol_channels['nano']
head = dict(
    channels=64,
    num_classes=len(_base_.classes),
    ignore_index=_base_.void,
    norm_cfg=dict(type='BN', requires_grad=True),
)
# The loss is a sum with its own scale, because MMSegmentation's mean with class_weight fails at ignored
# pixels.
height, width = _base_.crop_size
weight = 1 / (_base_.batch_size * height * width)
weighted = dict(class_weight=_base_.class_weight, reduction='sum')
model = dict(
    data_preprocessor=_base_.data_preprocessor,
    backbone=dict(arch='nano', drop_path_rate=0.0, layer_scale_init_value=1.0),
    decode_head=dict(in_channels=channels, loss_decode=dict(loss_weight=weight, **weighted), **head),
    auxiliary_head=dict(
        in_channels=channels[2], loss_decode=dict(loss_weight=0.4 * weight, **weighted), **head
    ),
    test_cfg=dict(mode='whole'),
)
max_iters = _base_.camvid_iters
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(lr=1e-3),
    paramwise_cfg=dict(decay_rate=1.0),  # the backbone is not pretrained
)
param_scheduler = _base_.camvid_schedule
train_cfg = dict(max_iters=max_iters, val_interval=max_iters // 6)
default_hooks = dict(checkpoint=dict(interval=max_iters // 6))
