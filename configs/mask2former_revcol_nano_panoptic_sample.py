# Mask2Former for panoptic segmentation of the sample data: digits are things, photographs stuff. All
# hyper-parameters are ours.
_base_ = ['_base_/mask2former_coco_panoptic.py', '_base_/mask2former_nano_head.py', '_base_/coco_sample.py']

num_classes, num_stuff_classes = len(_base_.digits), 1
model = dict(
    data_preprocessor=dict(batch_augments=None),
    backbone=_base_.sample_backbone,
    panoptic_head=dict(
        in_channels=_base_.revcol_channels['nano'],
        num_things_classes=num_classes,
        num_stuff_classes=num_stuff_classes,
        loss_cls=dict(class_weight=[1.0] * (num_classes + num_stuff_classes) + [0.1]),
        **_base_.mask2former_nano_head,
    ),
    panoptic_fusion_head=dict(num_things_classes=num_classes, num_stuff_classes=num_stuff_classes),
    train_cfg=dict(num_points=512),
    test_cfg=dict(max_per_image=20),
)
metainfo = dict(
    classes=(*_base_.digits, 'photograph'),
    thing_classes=_base_.digits,
    stuff_classes=('photograph',),
    palette=[*_base_.digit_palette, (120, 120, 120)],
)
train_dataloader = _base_.sample_train_dataloader
val_dataloader = _base_.sample_val_dataloader
test_dataloader = val_dataloader
train_pipeline = train_dataloader.dataset.pipeline
test_pipeline = val_dataloader.dataset.pipeline
train_pipeline[1] = test_pipeline[2] = _base_.load
train_dataloader.dataset.metainfo = val_dataloader.dataset.metainfo = metainfo
data_root = _base_.sample_data_root
val_evaluator = _base_.val_evaluator
val_evaluator[0].update(
    ann_file=data_root + 'annotations/panoptic_val2017.json',
    seg_prefix=data_root + 'annotations/panoptic_val2017/',
)
val_evaluator[1].update(ann_file=data_root + 'annotations/instances_val2017.json')
test_evaluator = val_evaluator

optim_wrapper = _base_.mask2former_nano_optim_wrapper
param_scheduler = _base_.sample_schedule
max_iters = 800
param_scheduler[-1].update(end=max_iters)
train_cfg = dict(max_iters=max_iters, val_interval=max_iters // 4)
default_hooks = dict(
    logger=dict(interval=20),
    checkpoint=dict(interval=max_iters // 4),
    visualization=dict(interval=10),
)
