# Cascade Mask R-CNN on COCO, 36 epochs, as in RevCol's released config.
_base_ = ['cascade_mask_rcnn.py', 'coco.py']

model = dict(data_preprocessor=dict(pad_mask=True, **_base_.data_preprocessor))
train_pipeline = _base_.train_pipeline
train_pipeline[1].update(with_mask=True)
test_pipeline = _base_.test_pipeline
test_pipeline[2].update(with_mask=True)
custom_imports = dict(imports=[*_base_.custom_imports.imports, 'revcol_mm.models.instance_tta'])
tta_model = dict(type='InstanceTTAModel')
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(metric=['bbox', 'segm'])
test_evaluator = val_evaluator

max_epochs = 36
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=max_epochs, val_interval=1)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, begin=0, end=500, by_epoch=False),
    dict(type='MultiStepLR', begin=0, end=max_epochs, by_epoch=True, milestones=[27, 33], gamma=0.1),
]
