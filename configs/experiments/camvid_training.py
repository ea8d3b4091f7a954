# Compare intermediate supervision, reversible training and layer-wise learning rate decay with the recipe.
config = 'configs/upernet_revcol_nano_camvid.py'
iterations = 2000
seeds = [0]
metrics = ['mIoU', 'trimap/iou']
options = {}
runs = {
    'as it is': {},
    'supervised columns': dict(config='configs/upernet_revcol_nano_supervised_camvid.py'),
    'reversible': {'model.backbone.save_memory': True},
    'layer decay 0.9': {'optim_wrapper.paramwise_cfg.decay_rate': 0.9},
}
