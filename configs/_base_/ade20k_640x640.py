# ADE20K with 640x640 crops.
# `_base_` comes first: MMEngine takes files that begin with an import for lazy configs.
_base_ = ['ade20k_512x512.py']
from revcol_mm.config.crop_size import pipelines_for_crops  # noqa: E402

crop_size = (640, 640)
data_preprocessor = dict(size=crop_size)
train_pipeline, test_pipeline, tta_pipeline = pipelines_for_crops(_base_, 640)
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
