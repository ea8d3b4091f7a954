# cascade_rcnn_revcol_nano_bccd.py with a ConvNeXt of MMPretrain and as many parameters. All numbers are ours.
_base_ = ['../cascade_rcnn_revcol_nano_bccd.py']

channels = [37, 74, 148, 296]
model = dict(
    backbone=dict(
        _delete_=True,
        type='mmpretrain.ConvNeXt',
        arch=dict(depths=[3, 3, 9, 3], channels=channels),
        layer_scale_init_value=1.0,
        out_indices=(0, 1, 2, 3),
        gap_before_final_norm=False,
    ),
    neck=dict(in_channels=channels),
)
