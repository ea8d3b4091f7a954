# BCCD: blood cells in 364 photographs of 640x480 pixels, converted by tools/convert_voc.py; see
# docs/real_data.md. All hyper-parameters are ours.
_base_ = ['coco.py']

data_root = '{{$BCCD:data/bccd}}/'  # the environment variable BCCD overrides it
classes = ('Platelets', 'RBC', 'WBC')
scale = (400, 300)

annotations = dict(type='LoadAnnotations', with_bbox=True)
meta_keys = ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor', 'flip', 'flip_direction')
pack = dict(type='PackDetInputs', meta_keys=meta_keys)
dataset = dict(
    type='CocoDataset',
    data_root=data_root,
    data_prefix=dict(img='JPEGImages/'),
    metainfo=dict(classes=classes, palette=[(240, 200, 0), (220, 20, 60), (70, 60, 200)]),
)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    annotations,
    # Blood smears have no orientation.
    dict(type='RandomFlip', prob=[0.25, 0.25, 0.25], direction=['horizontal', 'vertical', 'diagonal']),
    dict(type='RandomResize', scale=scale, ratio_range=(0.8, 1.25), keep_ratio=True),
    dict(type='RandomCrop', crop_size=(256, 320), allow_negative_crop=True),
    dict(type='PhotoMetricDistortion'),
    pack,
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=scale, keep_ratio=True),
    annotations,
    pack,
]
train_dataloader = dict(
    batch_size=4,
    num_workers=2,
    sampler=dict(type='InfiniteSampler'),
    batch_sampler=None,
    dataset=dict(
        _delete_=True,
        ann_file='train.json',
        filter_cfg=dict(filter_empty_gt=False),
        pipeline=train_pipeline,
        **dataset,
    ),
)
val_dataloader = dict(
    num_workers=2,
    dataset=dict(_delete_=True, ann_file='val.json', test_mode=True, pipeline=test_pipeline, **dataset),
)
test_dataloader = dict(
    num_workers=2,
    dataset=dict(_delete_=True, ann_file='test.json', test_mode=True, pipeline=test_pipeline, **dataset),
)
tta_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(
        type='TestTimeAug',
        transforms=[
            [dict(type='Resize', scale=(4 * side // 3, side), keep_ratio=True) for side in (240, 300, 360)],
            [dict(type='RandomFlip', prob=0.0), dict(type='RandomFlip', prob=1.0)],
            [annotations],
            [pack],
        ],
    ),
]
val_evaluator = dict(ann_file=data_root + 'val.json')
test_evaluator = dict(ann_file=data_root + 'test.json')

max_iters = 3000
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, begin=0, end=100, by_epoch=False),
    dict(type='PolyLR', eta_min=0, power=0.9, begin=100, end=max_iters, by_epoch=False),
]
train_cfg = dict(type='IterBasedTrainLoop', max_iters=max_iters, val_interval=max_iters // 6)
log_processor = dict(by_epoch=False)
auto_scale_lr = dict(base_batch_size=4)
default_hooks = dict(
    logger=dict(log_metric_by_epoch=False),
    checkpoint=dict(by_epoch=False, interval=max_iters // 6),
    visualization=dict(interval=20),
)
