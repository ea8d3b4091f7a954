# Extend a trained network to several columns and train on, compared with training the network alone for the
# same time. Run the experiment camvid_backbones first: all runs except the last two start from its ConvNeXt
# after 2000 iterations. An iteration of N columns takes about N times as long. The runs from scratch get the
# time of both trainings.
config = 'configs/upernet_convnext_nano_2columns_camvid.py'
iterations = 500
seeds = [0, 1, 2]
metrics = ['val/mIoU', 'mIoU', 'trimap/iou', 'confusion/iou_pole', 'confusion/iou_sign']
options = {'load_from': 'work_dirs/experiments/camvid_backbones/ConvNeXt/seed0/iter_2000.pth'}
runs = {
    'alone': dict(config='configs/baselines/upernet_convnext_camvid.py', iterations=1000),
    '2 columns': {},
    '2 columns, drop path 0.2': {'model.backbone.net.drop_path_rate': 0.2},
    '2 light columns': dict(iterations=800, **{'model.backbone.mode': 'light'}),
    '4 light columns': dict(
        iterations=600, **{'model.backbone.mode': 'light', 'model.backbone.num_columns': 4}
    ),
    '4 columns': dict(iterations=250, **{'model.backbone.num_columns': 4}),
    '2 columns from scratch': dict(load_from=None, iterations=1500),
    '4 columns from scratch': dict(load_from=None, iterations=750, **{'model.backbone.num_columns': 4}),
}
