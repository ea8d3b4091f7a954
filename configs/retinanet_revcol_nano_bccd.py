# RetinaNet on BCCD, from scratch. Values of the method are those of MMDetection's retinanet_r50_fpn, all
# others are ours.
_base_ = ['_base_/coco.py', '_base_/bccd.py']

width = 64
norm_cfg = dict(type='BN', requires_grad=True)
model = dict(
    type='RetinaNet',
    data_preprocessor=_base_.data_preprocessor,
    backbone=dict(
        type='RevCol', arch='nano', drop_path_rate=0.0, layer_scale_init_value=1.0, out_indices=(1, 2, 3)
    ),
    neck=dict(
        type='FPN',
        in_channels=_base_.revcol_channels['nano'][1:],
        out_channels=width,
        num_outs=4,
        norm_cfg=norm_cfg,
    ),
    bbox_head=dict(
        type='RetinaHead',
        num_classes=len(_base_.bccd_classes),
        in_channels=width,
        stacked_convs=2,
        feat_channels=width,
        norm_cfg=norm_cfg,
        anchor_generator=dict(
            type='AnchorGenerator',
            octave_base_scale=3,
            scales_per_octave=3,
            ratios=[0.5, 1.0, 2.0],
            strides=[8, 16, 32, 64],
        ),
        bbox_coder=dict(type='DeltaXYWHBBoxCoder', target_means=[0.0] * 4, target_stds=[1.0] * 4),
        loss_cls=dict(type='FocalLoss', use_sigmoid=True, gamma=2.0, alpha=0.25, loss_weight=1.0),
        loss_bbox=dict(type='GIoULoss', loss_weight=2.0),
        reg_decoded_bbox=True,
    ),
    train_cfg=dict(
        assigner=dict(
            type='MaxIoUAssigner', pos_iou_thr=0.5, neg_iou_thr=0.4, min_pos_iou=0, ignore_iof_thr=-1
        ),
        sampler=dict(type='PseudoSampler'),
        allowed_border=-1,
        pos_weight=-1,
        debug=False,
    ),
    test_cfg=dict(
        nms_pre=1000,
        min_bbox_size=0,
        score_thr=0.05,
        nms=dict(type='nms', iou_threshold=0.5),
        max_per_img=100,
    ),
)
train_dataloader = _base_.bccd_train_dataloader
val_dataloader = _base_.bccd_val_dataloader
test_dataloader = _base_.bccd_test_dataloader
train_pipeline = train_dataloader.dataset.pipeline
test_pipeline = test_dataloader.dataset.pipeline
tta_pipeline = _base_.bccd_tta_pipeline
data_root = _base_.bccd_data_root
val_evaluator = dict(ann_file=data_root + 'val.json')
test_evaluator = dict(ann_file=data_root + 'test.json')

optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.05),
    clip_grad=dict(max_norm=10.0),
    constructor='LayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(decay_rate=1.0),  # the backbone is not pretrained
)
max_iters = _base_.bccd_iters
param_scheduler = _base_.bccd_schedule
train_cfg = dict(type='IterBasedTrainLoop', max_iters=max_iters, val_interval=max_iters // 6)
log_processor = dict(by_epoch=False)
auto_scale_lr = dict(base_batch_size=4)
default_hooks = dict(
    logger=dict(log_metric_by_epoch=False),
    checkpoint=dict(by_epoch=False, interval=max_iters // 6),
    visualization=dict(interval=20),
)
