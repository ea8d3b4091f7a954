# Compare backbones pre-trained on CamVid with random ones on BCCD. Run the experiment camvid_backbones first.
# The schedule of 3000 iterations is scaled to 1000, so that its warm-up takes 33.
config = 'configs/retinanet_revcol_nano_bccd.py'
iterations = 1000
seeds = [0]
metrics = ['coco/bbox_mAP', 'coco/bbox_mAP_50', 'coco/bbox_mAP_75']
options = {}
runs = {
    f'{name}, {start}{label}': {
        'config': path,
        'model.backbone.init_cfg': None
        if start == 'random'
        else dict(
            type='Pretrained',
            checkpoint=f'work_dirs/experiments/camvid_backbones/{name}/seed0/iter_2000.pth',
            prefix='backbone.',
        ),
        **warm_up,
    }
    for name, path in (
        ('RevCol', config),
        ('ConvNeXt', 'configs/baselines/retinanet_convnext_bccd.py'),
    )
    for start in ('random', 'from CamVid')
    for label, warm_up in (
        ('', {}),
        (', warm-up of 300', {'param_scheduler.0.end': 900, 'param_scheduler.1.begin': 900}),
    )
}
