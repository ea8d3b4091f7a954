# 2 reversible columns of MMPretrain's ResNet-50, IN-1K weights, in what a config takes of it. Numbers are
# ours.
columns_channels = [256, 512, 1024, 2048]
columns = dict(
    _delete_=True,
    type='ReversibleColumns',
    net=dict(
        type='mmpretrain.ResNet',
        depth=50,
        norm_eval=True,  # a GPU's two images are too few for statistics
        out_indices=(0, 1, 2, 3),
    ),
    num_columns=2,
    save_memory=True,
    init_cfg=dict(
        type='Pretrained',
        checkpoint='https://download.openmmlab.com/mmclassification/v0/resnet/resnet50_8xb32_in1k_20210831-ea4938fc.pth',
    ),
)
