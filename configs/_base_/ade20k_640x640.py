# ADE20K with 640x640 crops.
_base_ = ['ade20k_512x512.py']
from revcol_mm.config.crop_size import with_crop_size  # noqa: E402

globals().update(with_crop_size(_base_, 640))
