# upernet_revcol_nano_camvid.py with MMPretrain's ResNet-18, narrowed to the same size, as backbone. All
# hyper-parameters are ours.
_base_ = ['../upernet_revcol_nano_camvid.py']

channels = [39, 78, 156, 312]
model = dict(
    backbone=dict(
        _delete_=True,
        type='mmpretrain.ResNet',
        depth=18,
        base_channels=channels[0],
        stem_channels=channels[0],
        out_indices=(0, 1, 2, 3),
    ),
    decode_head=dict(in_channels=channels),
    auxiliary_head=dict(in_channels=channels[2]),
)
