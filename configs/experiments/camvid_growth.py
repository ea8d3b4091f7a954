# Extend a trained network to several columns and train on, compared with training the network alone for the
# same time. Run the experiment camvid_backbones first: all runs except those from scratch start from its
# networks after 2000 iterations, ConvNeXt where the run names no other. An iteration of N columns takes about
# N times as long. The runs from scratch get the time of both trainings. The runs with two columns of ConvNeXt
# try what makes the columns, which start as copies, learn different things.
config = 'configs/upernet_convnext_nano_2columns_camvid.py'
iterations = 500
seeds = [0, 1, 2]
metrics = ['val/mIoU', 'mIoU', 'trimap/iou', 'confusion/iou_pole', 'confusion/iou_sign']
options = {'load_from': 'work_dirs/experiments/camvid_backbones/ConvNeXt/seed0/iter_2000.pth'}
runs = {
    'alone': dict(config='configs/baselines/upernet_convnext_camvid.py', iterations=1000),
    '2 columns': {},
    '2 columns, drop path 0.2': dict(seeds=[0], **{'model.backbone.net.drop_path_rate': 0.2}),
    '2 columns, second with 3 times the learning rate': dict(
        seeds=[0], **{'optim_wrapper.paramwise_cfg.custom_keys': {'subnet1': dict(lr_mult=3.0)}}
    ),
    '2 columns, first frozen': dict(seeds=[0], iterations=700, **{'model.backbone.frozen_columns': 1}),
    '2 columns, supervised': dict(
        seeds=[0], config='configs/upernet_convnext_nano_2columns_supervised_camvid.py'
    ),
    '2 light columns': dict(iterations=800, **{'model.backbone.mode': 'light'}),
    '4 light columns': dict(
        seeds=[0], iterations=600, **{'model.backbone.mode': 'light', 'model.backbone.num_columns': 4}
    ),
    '4 columns': dict(iterations=250, **{'model.backbone.num_columns': 4}),
    '2 columns from scratch': dict(seeds=[0], load_from=None, iterations=1500),
    '4 columns from scratch': dict(
        seeds=[0], load_from=None, iterations=750, **{'model.backbone.num_columns': 4}
    ),
    **{
        f'{name}, {columns}': dict(
            seeds=[0],
            config=config,
            iterations=iterations,
            load_from=f'work_dirs/experiments/camvid_backbones/{name}/seed0/iter_2000.pth',
        )
        for name, file in (('ResNet', 'upernet_resnet'), ('Swin', 'upernet_swin'))
        for columns, config, iterations in (
            ('alone', f'configs/baselines/{file}_camvid.py', 1000),
            ('2 columns', f'configs/{file}_nano_2columns_camvid.py', 500),
        )
    },
}
