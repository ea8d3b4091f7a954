# ADE20K with 896x896 crops. MMSegmentation has no such recipe; InternImage and ViT-Adapter train their
# largest models with this size.
_base_ = ['ade20k_512x512.py']
from revcol_mm.config.crop_size import with_crop_size  # noqa: E402

globals().update(with_crop_size(_base_, 896))
