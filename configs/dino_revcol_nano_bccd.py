# DINO on BCCD, from scratch. All hyper-parameters are ours.
_base_ = ['_base_/dino.py', '_base_/bccd.py']

ffn = dict(feedforward_channels=512)
model = dict(
    num_queries=100,
    backbone=dict(arch='nano', drop_path_rate=0.0, layer_scale_init_value=1.0),
    neck=dict(in_channels=_base_.revcol_channels['nano'][1:]),  # out_channels must be 256 in MMDetection
    encoder=dict(num_layers=1, layer_cfg=dict(ffn_cfg=ffn)),
    decoder=dict(num_layers=3, layer_cfg=dict(ffn_cfg=ffn)),
    bbox_head=dict(num_classes=len(_base_.bccd_classes)),
    dn_cfg=dict(group_cfg=dict(num_dn_queries=50)),
    test_cfg=dict(max_per_img=100),
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
    optimizer=dict(lr=5e-4),
    clip_grad=dict(max_norm=1.0),
    paramwise_cfg=dict(decay_rate=1.0),  # the backbone is not pretrained
)
max_iters = _base_.bccd_iters
param_scheduler = _base_.bccd_schedule
train_cfg = dict(_delete_=True, type='IterBasedTrainLoop', max_iters=max_iters, val_interval=max_iters // 6)
log_processor = dict(by_epoch=False)
auto_scale_lr = dict(base_batch_size=4)
default_hooks = dict(
    logger=dict(log_metric_by_epoch=False),
    checkpoint=dict(by_epoch=False, interval=max_iters // 6),
    visualization=dict(interval=20),
)
