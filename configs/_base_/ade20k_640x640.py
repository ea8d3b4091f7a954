# ADE20K at 640x640 crops.
_base_ = ['ade20k_512x512.py']

crop_size = (640, 640)
scale = (2560, 640)
data_preprocessor = dict(size=crop_size)
train_pipeline = _base_.train_pipeline
train_pipeline[2].update(scale=scale)
train_pipeline[3].update(crop_size=crop_size)
test_pipeline = _base_.test_pipeline
test_pipeline[1].update(scale=scale)
tta_pipeline = _base_.tta_pipeline
for resize in tta_pipeline[1].transforms[0]:
    resize.update(scale=tuple(side * 640 // 512 for side in resize.scale))
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
