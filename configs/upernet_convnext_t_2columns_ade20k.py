# UPerNet on 2 reversible columns of ConvNeXt-T; otherwise like upernet_revcol_t_ade20k.py.
_base_ = ['upernet_revcol_t_ade20k.py', '_base_/columns_convnext_t.py']

channels = _base_.columns_channels
model = dict(
    backbone=_base_.columns,
    decode_head=dict(in_channels=channels),
    auxiliary_head=dict(in_channels=channels[2]),
)
