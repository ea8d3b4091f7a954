# Mask2Former for instance segmentation of COCO, 50 epochs with large-scale jitter. Unless a comment says
# otherwise, values are those of MMDetection's mask2former_swin-t-p4-w7-224_8xb2-lsj-50e_coco.
_base_ = ['coco.py', 'mask2former_head.py']

image_size = (1024, 1024)
num_classes = 80
pad = dict(pad_mask=True, mask_pad_value=0)
model = dict(
    type='Mask2Former',
    data_preprocessor=dict(
        batch_augments=[dict(type='BatchFixedSizePad', size=image_size, img_pad_value=0, **pad)],
        **pad,
        **_base_.data_preprocessor,
    ),
    backbone=dict(type='RevCol'),
    panoptic_head=dict(
        type='Mask2FormerHead',
        num_things_classes=num_classes,
        num_stuff_classes=0,
        **_base_.mask2former_head,
    ),
    panoptic_fusion_head=dict(
        type='MaskFormerFusionHead', num_things_classes=num_classes, num_stuff_classes=0, loss_panoptic=None
    ),
    train_cfg=_base_.mask2former_train_cfg,
    test_cfg=dict(
        panoptic_on=False,
        semantic_on=False,
        instance_on=True,
        max_per_image=100,
        iou_thr=0.8,
        filter_low_score=True,
    ),
)
model['panoptic_head']['loss_cls']['class_weight'] = [1.0] * num_classes + [0.1]  # last: 'no object'
jitter = [
    dict(type='RandomFlip', prob=0.5),
    dict(type='RandomResize', scale=image_size, ratio_range=(0.1, 2.0), keep_ratio=True),
    dict(
        type='RandomCrop',
        crop_size=image_size,
        crop_type='absolute',
        recompute_bbox=True,
        allow_negative_crop=True,
    ),
]
train_pipeline = [
    dict(type='LoadImageFromFile', to_float32=True),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    *jitter,
    dict(type='FilterAnnotations', min_gt_bbox_wh=(1e-5, 1e-5), by_mask=True),
    dict(type='PackDetInputs'),
]
test_pipeline = _base_.test_pipeline
test_pipeline[0].update(to_float32=True)
test_pipeline[2].update(with_mask=True)
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
custom_imports = dict(imports=[*_base_.custom_imports.imports, 'revcol_mm.models.instance_tta'])
tta_model = dict(type='InstanceTTAModel')
val_evaluator = dict(metric=['bbox', 'segm'])
test_evaluator = val_evaluator

no_decay = dict(decay_mult=0.0)
optim_wrapper = dict(
    type='AmpOptimWrapper',  # as in RevCol's published runs
    optimizer=dict(type='AdamW', lr=1e-4, weight_decay=0.05, eps=1e-8, betas=(0.9, 0.999)),
    clip_grad=dict(max_norm=0.01, norm_type=2),
    constructor='LayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(
        decay_rate=1.0,
        custom_keys=dict(
            backbone=dict(lr_mult=0.1), query_embed=no_decay, query_feat=no_decay, level_embed=no_decay
        ),
    ),
)
max_iters = 368750
param_scheduler = [
    dict(type='MultiStepLR', begin=0, end=max_iters, by_epoch=False, milestones=[327778, 355092], gamma=0.1)
]
train_cfg = dict(type='IterBasedTrainLoop', max_iters=max_iters, val_interval=5000)
log_processor = dict(by_epoch=False)
default_hooks = dict(
    logger=dict(log_metric_by_epoch=False),
    checkpoint=dict(by_epoch=False, interval=5000, max_keep_ckpts=3, save_best='coco/segm_mAP'),
)
