# Ablate upernet_revcol_nano_camvid.py: each run changes one setting. Runs of 1, 2 and 8 columns have the
# FLOPs and parameters of the recipe, which has 4, within 5%.
config = 'configs/upernet_revcol_nano_camvid.py'
iterations = 1000
seeds = [0]
metrics = ['val/mIoU', 'mIoU', 'trimap/iou', 'confusion/iou_pole', 'confusion/iou_sign']
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
    # The schedule of 12,000 iterations is scaled to 1000, so that the recipe's warm-up takes 25.
    'warm-up of 300': {'param_scheduler.0.end': 3600, 'param_scheduler.1.begin': 3600},
    'learning rate 0.0025': {'optim_wrapper.optimizer.lr': 2.5e-3},
    'learning rate 0.0025, warm-up of 300': {
        'optim_wrapper.optimizer.lr': 2.5e-3,
        'param_scheduler.0.end': 3600,
        'param_scheduler.1.begin': 3600,
    },
    'Kaiming initialisation': {'model.backbone.init_cfg': dict(type='Kaiming', layer=['Conv2d', 'Linear'])},
    'constant alphas': {'optim_wrapper.paramwise_cfg.custom_keys': {'alpha': dict(lr_mult=0.0)}},
    'drop path 0.1': {'model.backbone.drop_path_rate': 0.1},
    'weight decay 0.05': {'optim_wrapper.optimizer.weight_decay': 0.05},
    'layer decay 0.9': {'optim_wrapper.paramwise_cfg.decay_rate': 0.9},
    'reversible': {'model.backbone.save_memory': True},
    'supervised columns': dict(config='configs/upernet_revcol_nano_supervised_camvid.py'),
    **{
        f'columns: {num_columns}': {
            'model.backbone.arch': dict(
                _delete_=True,
                channels=[width * 2**level for level in range(4)],
                layers=layers,
                num_columns=num_columns,
            ),
            'model.decode_head.in_channels': [width * 2**level for level in range(4)],
            'model.auxiliary_head.in_channels': width * 4,
        }
        for num_columns, width, layers in (
            (1, 34, (4, 4, 8, 4)),
            (2, 33, (2, 2, 4, 2)),
            (8, 22, (1, 1, 2, 1)),
        )
    },
}
