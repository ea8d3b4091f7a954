# ADE20K with 896x896 crops. MMSegmentation has no such recipe; InternImage and ViT-Adapter train their
# largest models with this size.
# `_base_` comes first: MMEngine takes files that begin with an import for lazy configs.
_base_ = ['ade20k_512x512.py']
from revcol_mm.config.crop_size import pipelines_for_crops  # noqa: E402

crop_size = (896, 896)
data_preprocessor = dict(size=crop_size)
train_pipeline, test_pipeline, tta_pipeline = pipelines_for_crops(_base_, 896)
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
