# Ablate the recipe of upernet_revcol_nano_camvid.py: each run changes one setting.
config = 'configs/upernet_revcol_nano_camvid.py'
iterations = 1000
seeds = [0]
metrics = ['val/mIoU', 'mIoU', 'trimap/iou']
options = {}
runs = {
    'the recipe': {},
    'scales 0.5 to 2': {'train_dataloader.dataset.pipeline.2.ratio_range': (0.5, 2.0)},
    'one scale': {'train_dataloader.dataset.pipeline.2.ratio_range': (1.0, 1.0)},
    'equal weights of classes': {
        'model.decode_head.loss_decode': dict(class_weight=None, reduction='mean', loss_weight=1.0),
        'model.auxiliary_head.loss_decode': dict(class_weight=None, reduction='mean', loss_weight=0.4),
    },
    'weights as ENet has them': {
        f'model.{head}.loss_decode.class_weight': [
            float(weight) for weight in '0.8 0.61 4.79 0.48 2.21 1.25 4.5 4.57 1.83 5.43 6.27'.split()
        ]
        for head in ('decode_head', 'auxiliary_head')
    },
    'group norm in the heads': {
        f'model.{head}.norm_cfg': dict(type='GN', num_groups=8) for head in ('decode_head', 'auxiliary_head')
    },
    'kernels of 7': {'model.backbone.kernel_size': 7},
    'layer scale from 1e-6': {'model.backbone.layer_scale_init_value': 1e-6},
    'drop path 0.1': {'model.backbone.drop_path_rate': 0.1},
    'weight decay 0.05': {'optim_wrapper.optimizer.weight_decay': 0.05},
    'supervised columns': dict(config='configs/upernet_revcol_nano_supervised_camvid.py'),
}
