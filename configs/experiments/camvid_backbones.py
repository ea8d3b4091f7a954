# RevCol and backbones of MMPretrain of its size, each with its best rate of camvid_learning_rates.
config = 'configs/upernet_revcol_nano_camvid.py'
iterations = 2000
seeds = [0, 1, 2]
metrics = ['mIoU', 'trimap/iou', 'confusion/iou_pole', 'confusion/iou_sign', 'confusion/iou_pedestrian']
options = {}
runs = {
    'RevCol': {},
    'ConvNeXt': dict(config='configs/baselines/upernet_convnext_camvid.py'),
    'ResNet': dict(config='configs/baselines/upernet_resnet_camvid.py'),
    'Swin': dict(config='configs/baselines/upernet_swin_camvid.py'),
}
