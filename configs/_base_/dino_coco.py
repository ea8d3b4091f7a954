# DINO on COCO, 12 epochs, like MMDetection's dino-4scale_r50_8xb2-12e_coco.
_base_ = ['dino.py', 'coco.py']

model = dict(data_preprocessor=_base_.data_preprocessor)
coarse_resize = _base_.coarse_resize
coarse_resize.update(scales=[(side, 4200) for side in (400, 500, 600)])  # as in DETR: in effect no limit
train_pipeline = _base_.train_pipeline
train_pipeline[3].update(transforms=[[_base_.resize], [coarse_resize, _base_.crop, _base_.resize]])
train_dataloader = dict(dataset=dict(filter_cfg=dict(filter_empty_gt=False), pipeline=train_pipeline))
tta_model = dict(tta_cfg=dict(max_per_img=300))

max_epochs = 12
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=max_epochs, val_interval=1)
param_scheduler = [
    dict(type='MultiStepLR', begin=0, end=max_epochs, by_epoch=True, milestones=[11], gamma=0.1)
]
