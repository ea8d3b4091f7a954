# Mask2Former for instance segmentation of the sample data. All hyper-parameters are ours.
_base_ = ['_base_/mask2former_coco.py', '_base_/mask2former_nano_head.py', '_base_/coco_sample.py']

num_classes = len(_base_.digits)
model = dict(
    data_preprocessor=dict(batch_augments=None),
    backbone=_base_.sample_backbone,
    panoptic_head=dict(
        in_channels=_base_.revcol_channels['nano'],
        num_things_classes=num_classes,
        loss_cls=dict(class_weight=[1.0] * num_classes + [0.1]),
        **_base_.mask2former_nano_head,
    ),
    panoptic_fusion_head=dict(num_things_classes=num_classes),
    train_cfg=dict(num_points=512),
    test_cfg=dict(max_per_image=20),
)
train_dataloader = _base_.sample_train_dataloader
val_dataloader = _base_.sample_val_dataloader
test_dataloader = val_dataloader
train_pipeline = train_dataloader.dataset.pipeline
test_pipeline = val_dataloader.dataset.pipeline
train_pipeline[1].update(with_mask=True)
test_pipeline[2].update(with_mask=True)
tta_pipeline = _base_.sample_tta_pipeline
data_root = _base_.sample_data_root
val_evaluator = dict(ann_file=data_root + 'annotations/instances_val2017.json')
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
