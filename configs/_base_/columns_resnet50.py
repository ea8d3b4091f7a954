# Variables for a backbone of 2 reversible columns of MMPretrain's ResNet-50 with IN-1K weights. All
# hyper-parameters are ours.
columns_channels = [256, 512, 1024, 2048]
columns = dict(
    _delete_=True,
    type='ReversibleColumns',
    net=dict(
        type='mmpretrain.ResNet',
        depth=50,
        norm_eval=True,  # two images per GPU are too few for batch statistics
        out_indices=(0, 1, 2, 3),
    ),
    num_columns=2,
    save_memory=True,
    init_cfg=dict(
        type='Pretrained',
        checkpoint='https://download.openmmlab.com/mmclassification/v0/resnet/resnet50_8xb32_in1k_20210831-ea4938fc.pth',
    ),
)
