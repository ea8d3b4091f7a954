# DINO on the sample data. All hyper-parameters are ours.
_base_ = ['_base_/dino_coco.py', '_base_/coco_sample.py']

ffn = dict(feedforward_channels=256)
model = dict(
    num_queries=50,
    backbone=_base_.sample_backbone,
    neck=dict(in_channels=_base_.revcol_channels['nano'][1:]),  # out_channels must be 256 in MMDetection
    encoder=dict(num_layers=1, layer_cfg=dict(ffn_cfg=ffn)),
    decoder=dict(num_layers=2, layer_cfg=dict(ffn_cfg=ffn)),
    bbox_head=dict(num_classes=len(_base_.digits)),
    dn_cfg=dict(group_cfg=dict(num_dn_queries=20)),
    test_cfg=dict(max_per_img=50),
)
train_dataloader = _base_.sample_train_dataloader
val_dataloader = _base_.sample_val_dataloader
test_dataloader = val_dataloader
train_pipeline = train_dataloader.dataset.pipeline
test_pipeline = val_dataloader.dataset.pipeline
tta_pipeline = _base_.sample_tta_pipeline
data_root = _base_.sample_data_root
val_evaluator = dict(ann_file=data_root + 'annotations/instances_val2017.json')
test_evaluator = val_evaluator

optim_wrapper = dict(
    optimizer=dict(lr=5e-4),
    clip_grad=dict(max_norm=1.0),
    paramwise_cfg=dict(decay_rate=1.0),  # the backbone is not pretrained
)
param_scheduler = _base_.sample_schedule
max_iters = 1000
param_scheduler[-1].update(end=max_iters)
train_cfg = dict(_delete_=True, type='IterBasedTrainLoop', max_iters=max_iters, val_interval=max_iters // 5)
log_processor = dict(by_epoch=False)
default_hooks = dict(
    logger=dict(interval=20, log_metric_by_epoch=False),
    checkpoint=dict(by_epoch=False, interval=max_iters),
    visualization=dict(interval=10),
)
