# baselines/upernet_resnet_camvid.py with 2 reversible columns of its backbone. All hyper-parameters are ours.
_base_ = ['baselines/upernet_resnet_camvid.py']

model = dict(
    backbone=dict(
        _delete_=True, type='ReversibleColumns', net=_base_.model.backbone, num_columns=2, save_memory=True
    )
)
