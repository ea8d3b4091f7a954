# cascade_rcnn_revcol_nano_bccd.py with a ConvNeXt of MMPretrain and as many parameters. All numbers are ours.
_base_ = ['../cascade_rcnn_revcol_nano_bccd.py', '_base_/convnext_nano.py']

model = dict(backbone=dict(_delete_=True, **_base_.convnext), neck=dict(in_channels=_base_.convnext_channels))
