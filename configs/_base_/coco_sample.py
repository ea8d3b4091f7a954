# The sample data for detection and instance segmentation. These are variables for configs that inherit from
# _base_/coco.py, which has keys of the same names. All hyper-parameters are ours.
_base_ = ['sample.py']

annotations = dict(type='LoadAnnotations', with_bbox=True)
meta_keys = ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor', 'flip', 'flip_direction')
pack = dict(type='PackDetInputs', meta_keys=meta_keys)
sample_data_root = 'data/sample/coco/'
dataset = dict(data_root=sample_data_root, metainfo=dict(classes=_base_.digits, palette=_base_.digit_palette))
sample_train_dataloader = dict(
    batch_size=4,
    num_workers=0,
    persistent_workers=False,
    sampler=dict(type='InfiniteSampler'),
    batch_sampler=None,
    dataset=dict(
        filter_cfg=dict(filter_empty_gt=False),
        pipeline=[
            dict(type='LoadImageFromFile'),
            annotations,
            # No flip: a mirrored digit is not the same digit. No colour jitter: each digit has its own hue.
            dict(
                type='RandomChoiceResize',
                scales=[(512, side) for side in range(96, 145, 16)],
                keep_ratio=True,
            ),
            pack,
        ],
        **dataset,
    ),
)
sample_val_dataloader = dict(
    num_workers=0,
    persistent_workers=False,
    dataset=dict(
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='Resize', scale=(512, 128), keep_ratio=True),
            annotations,
            pack,
        ],
        **dataset,
    ),
)
sample_tta_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(
        type='TestTimeAug',
        transforms=[
            [dict(type='Resize', scale=(512, side), keep_ratio=True) for side in (96, 128, 160)],
            [dict(type='RandomFlip', prob=0.0)],
            [annotations],
            [pack],
        ],
    ),
]
