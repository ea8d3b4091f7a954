# retinanet_revcol_nano_bccd.py with MMPretrain's ConvNeXt of the same size as backbone. All hyper-parameters
# are ours.
_base_ = ['../retinanet_revcol_nano_bccd.py', '_base_/convnext_nano.py']

convnext = _base_.convnext
convnext.update(out_indices=(1, 2, 3))
model = dict(
    backbone=dict(_delete_=True, **convnext),
    neck=dict(in_channels=_base_.convnext_channels[1:]),
)
