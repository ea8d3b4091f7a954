# Compare backbones pre-trained on CamVid with random ones on BCCD. Run the experiment camvid_backbones first.
config = 'configs/retinanet_revcol_nano_bccd.py'
iterations = 1000
seeds = [0]
metrics = ['coco/bbox_mAP', 'coco/bbox_mAP_50', 'coco/bbox_mAP_75']
options = {}
runs = {
    f'{name}, {start}': {
        'config': path,
        'model.backbone.init_cfg': None
        if start == 'random'
        else dict(
            type='Pretrained',
            checkpoint=f'work_dirs/experiments/camvid_backbones/{name}/seed0/iter_2000.pth',
            prefix='backbone.',
        ),
    }
    for name, path in (
        ('RevCol', config),
        ('ConvNeXt', 'configs/baselines/retinanet_convnext_bccd.py'),
    )
    for start in ('random', 'from CamVid')
}
