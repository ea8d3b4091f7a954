# The sample data as semantic segmentation. All hyper-parameters are ours.
_base_ = ['ade20k_512x512.py', 'sample.py']

classes = ('background', *_base_.digits)
palette = [(20, 20, 20), *_base_.digit_palette]
crop_size = (128, 128)
data_preprocessor = dict(size=crop_size)

train_pipeline = _base_.train_pipeline
train_pipeline[2].update(scale=(512, 128), ratio_range=(0.875, 1.5))
train_pipeline[3].update(crop_size=crop_size, cat_max_ratio=0.95)
train_pipeline[4].update(prob=0.0)  # a mirrored digit is not the same digit
test_pipeline = _base_.test_pipeline
test_pipeline[1].update(scale=(512, 160))
tta_pipeline = _base_.tta_pipeline
tta_pipeline[1].transforms[0] = [
    dict(type='Resize', scale=(512, side), keep_ratio=True) for side in (128, 160)
]
tta_pipeline[1].transforms[1] = [dict(type='RandomFlip', prob=0.0)]
data_root = 'data/sample/ade20k'
dataset = dict(
    type='BaseSegDataset',
    data_root=data_root,
    metainfo=dict(classes=classes, palette=palette),
    reduce_zero_label=True,
)
train_dataloader = dict(
    batch_size=8,
    num_workers=0,
    persistent_workers=False,
    dataset=dict(pipeline=train_pipeline, **dataset),
)
val_dataloader = dict(
    num_workers=0, persistent_workers=False, dataset=dict(pipeline=test_pipeline, **dataset)
)
test_dataloader = val_dataloader
test_evaluator = [dict(type='IoUMetric', iou_metrics=['mIoU']), dict(type='CommonestClassIoU')]
default_hooks = dict(visualization=dict(interval=10))
