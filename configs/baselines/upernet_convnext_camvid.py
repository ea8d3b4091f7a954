# upernet_revcol_nano_camvid.py with a ConvNeXt of MMPretrain and as many parameters. All numbers are ours.
_base_ = ['../upernet_revcol_nano_camvid.py']

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
    decode_head=dict(in_channels=channels),
    auxiliary_head=dict(in_channels=channels[2]),
)
