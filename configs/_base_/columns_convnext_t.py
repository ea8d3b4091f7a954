# Variables for a backbone of 2 reversible columns of MMPretrain's ConvNeXt-T with IN-1K weights. All
# hyper-parameters are ours.
columns_channels = [96, 192, 384, 768]
columns = dict(
    _delete_=True,
    type='ReversibleColumns',
    net=dict(
        type='mmpretrain.ConvNeXt',
        arch='tiny',
        drop_path_rate=0.3,
        out_indices=(0, 1, 2, 3),
        gap_before_final_norm=False,
    ),
    num_columns=2,
    save_memory=True,
    init_cfg=dict(
        type='Pretrained',
        checkpoint='https://download.openmmlab.com/mmclassification/v0/convnext/convnext-tiny_32xb128_in1k_20221207-998cf3e9.pth',
    ),
)
