# Variables for a backbone of 2 reversible columns of MMPretrain's Swin-T with IN-1K weights. All
# hyper-parameters are ours.
columns_channels = [96, 192, 384, 768]
columns = dict(
    _delete_=True,
    type='ReversibleColumns',
    net=dict(
        type='mmpretrain.SwinTransformer',
        arch='tiny',
        drop_path_rate=0.3,
        out_indices=(0, 1, 2, 3),
        pad_small_map=True,
    ),
    num_columns=2,
    save_memory=True,
    init_cfg=dict(
        type='Pretrained',
        checkpoint='https://download.openmmlab.com/mmclassification/v0/swin-transformer/swin_tiny_224_b16x64_300e_imagenet_20210616_090925-66df6be6.pth',
    ),
)
