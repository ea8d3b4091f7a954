# Cascade Mask R-CNN on the sample data. All hyper-parameters are ours.
_base_ = ['_base_/cascade_mask_rcnn_coco.py', '_base_/coco_sample.py']

num_classes = len(_base_.digits)
width = 64
norm_cfg = dict(type='BN', requires_grad=True)  # also in the neck and mask head: it helps on little data
bbox_heads = _base_.model.roi_head.bbox_head
for head in bbox_heads:
    head.update(
        num_shared_convs=1,
        in_channels=width,
        conv_out_channels=width,
        fc_out_channels=128,
        num_classes=num_classes,
        norm_cfg=norm_cfg,
    )
rcnn = _base_.model.train_cfg.rcnn
for stage in rcnn:
    stage.sampler.update(num=64)
model = dict(
    backbone=_base_.sample_backbone,
    neck=dict(in_channels=_base_.revcol_channels['nano'], out_channels=width, norm_cfg=norm_cfg),
    rpn_head=dict(in_channels=width, feat_channels=width, anchor_generator=dict(scales=[3])),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=width, finest_scale=14),  # 1/4 of the default, like images
        bbox_head=bbox_heads,
        mask_roi_extractor=dict(out_channels=width, finest_scale=14),
        mask_head=dict(
            num_convs=2,
            in_channels=width,
            conv_out_channels=width,
            num_classes=num_classes,
            norm_cfg=norm_cfg,
        ),
    ),
    train_cfg=dict(
        rpn=dict(allowed_border=-1),  # anchors of coarse levels exceed these small images
        rpn_proposal=dict(nms_pre=200, max_per_img=200),
        rcnn=rcnn,
    ),
    test_cfg=dict(rpn=dict(nms_pre=200, max_per_img=100)),
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

optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(lr=1e-3),
    clip_grad=dict(max_norm=10.0),
    paramwise_cfg=dict(decay_rate=1.0),  # the backbone is not pretrained
)
param_scheduler = _base_.sample_schedule
max_iters = 800
param_scheduler[-1].update(end=max_iters)
train_cfg = dict(_delete_=True, type='IterBasedTrainLoop', max_iters=max_iters, val_interval=max_iters // 5)
log_processor = dict(by_epoch=False)
default_hooks = dict(
    logger=dict(interval=20, log_metric_by_epoch=False),
    checkpoint=dict(by_epoch=False, interval=max_iters),
    visualization=dict(interval=10),
)
