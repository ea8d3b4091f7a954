# Mask2Former on 2 reversible columns of Swin-T; otherwise like mask2former_revcol_t_ade20k.py.
_base_ = ['mask2former_revcol_t_ade20k.py', '_base_/columns_swin_t.py']

model = dict(backbone=_base_.columns, decode_head=dict(in_channels=_base_.columns_channels))
