# Find the best learning rate of each backbone in short trainings from scratch.
config = 'configs/upernet_revcol_nano_camvid.py'
iterations = 600
seeds = [0]
metrics = ['val/mIoU']  # do not choose on the test split
options = {}
runs = {
    f'{name}, {lr}': dict({'optim_wrapper.optimizer.lr': lr}, config=path)
    for name, path in {
        'RevCol': config,
        'ConvNeXt': 'configs/baselines/upernet_convnext_camvid.py',
        'ResNet': 'configs/baselines/upernet_resnet_camvid.py',
        'Swin': 'configs/baselines/upernet_swin_camvid.py',
    }.items()
    for lr in (4e-4, 1e-3, 2.5e-3)
}
