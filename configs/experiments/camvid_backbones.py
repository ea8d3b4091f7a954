# Compare RevCol with MMPretrain's backbones of the same size, each with its best learning rate according to
# the experiment camvid_learning_rates.
config = 'configs/upernet_revcol_nano_camvid.py'
iterations = 2000
seeds = [0, 1, 2]
metrics = ['mIoU', 'trimap/iou', 'confusion/iou_pole', 'confusion/iou_sign', 'confusion/iou_pedestrian']
options = {}
runs = {
    name: dict({'optim_wrapper.optimizer.lr': lr}, config=path)
    for name, path, lr in (
        ('RevCol', config, 2.5e-3),
        ('ConvNeXt', 'configs/baselines/upernet_convnext_camvid.py', 2.5e-3),
        ('ResNet', 'configs/baselines/upernet_resnet_camvid.py', 1e-3),
        ('Swin', 'configs/baselines/upernet_swin_camvid.py', 2.5e-3),
    )
}
