# upernet_revcol_nano_camvid.py with MMPretrain's Swin of about the same size as backbone. All
# hyper-parameters are ours.
_base_ = ['../upernet_revcol_nano_camvid.py']

channels = [36, 72, 144, 288]
model = dict(
    backbone=dict(
        _delete_=True,
        type='mmpretrain.SwinTransformer',
        arch=dict(embed_dims=channels[0], depths=[2, 2, 6, 2], num_heads=[3, 6, 12, 24]),
        window_size=8,  # divides the feature maps of 256x256 crops, so that they are not padded
        drop_path_rate=0.0,
        out_indices=(0, 1, 2, 3),
    ),
    decode_head=dict(in_channels=channels),
    auxiliary_head=dict(in_channels=channels[2]),
)
