# DINO, 5 scales, on RevCol-H, COCO, started from dino_revcol_h_objects365.py. Published result: 63.8 AP; its
# recipe is not published. Schedule and image sizes are those of InternImage-H, drop path is that of
# RevCol-H's fine-tuning on ImageNet.
_base_ = ['_base_/dino_large_scale.py']

model = dict(
    backbone=dict(
        arch='huge',
        drop_path_rate=0.4,
        init_cfg=None,
    ),
    neck=dict(in_channels=_base_.revcol_channels['huge']),
)
load_from = 'work_dirs/dino_revcol_h_objects365/epoch_12.pth'  # except the classification layers
max_iters = 20000
train_dataloader = dict(sampler=dict(type='InfiniteSampler', shuffle=True))
train_cfg = dict(_delete_=True, type='IterBasedTrainLoop', max_iters=max_iters, val_interval=1000)
param_scheduler = [dict(type='LinearLR', start_factor=0.001, begin=0, end=500, by_epoch=False)]
log_processor = dict(by_epoch=False)
default_hooks = dict(logger=dict(log_metric_by_epoch=False), checkpoint=dict(by_epoch=False, interval=1000))
