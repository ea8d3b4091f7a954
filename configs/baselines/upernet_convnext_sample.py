# upernet_revcol_nano_sample.py with MMPretrain's ConvNeXt of the same size as backbone. All hyper-parameters
# are ours.
_base_ = ['../upernet_revcol_nano_sample.py', '_base_/convnext_nano.py']

channels = _base_.convnext_channels
model = dict(
    backbone=dict(_delete_=True, **_base_.convnext),
    decode_head=dict(in_channels=channels),
    auxiliary_head=dict(in_channels=channels[2]),
)
