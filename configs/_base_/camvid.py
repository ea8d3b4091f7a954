# CamVid: 11 classes, 480x360 pixels, splits of the SegNet tutorial; see docs/real_data.md. All
# hyper-parameters are ours.
_base_ = ['ade20k_512x512.py']

data_root = '{{$CAMVID:data/camvid}}'  # the environment variable CAMVID overrides it
classes = (
    *('sky', 'building', 'pole', 'road', 'pavement', 'tree', 'sign', 'fence', 'car', 'pedestrian'),
    'bicyclist',
)
palette = [
    *((128, 128, 128), (128, 0, 0), (192, 192, 128), (128, 64, 128), (60, 40, 222), (128, 128, 0)),
    *((192, 128, 128), (64, 64, 128), (64, 0, 128), (64, 64, 0), (0, 128, 192)),
]
void = 11  # label of pixels without a class
# Square root of ENet's weights 1 / ln(1.02 + share of pixels) (arXiv 1606.02147, section 5.2), scaled so that
# the mean over pixels is 1.
class_weight = [0.96, 0.84, 2.34, 0.74, 1.59, 1.19, 2.27, 2.29, 1.45, 2.49, 2.68]
crop_size = (256, 256)
batch_size = 3
data_preprocessor = dict(size=crop_size, seg_pad_val=void)

train_pipeline = _base_.train_pipeline
train_pipeline[2].update(scale=(480, 360), ratio_range=(0.75, 1.5))
train_pipeline[3].update(crop_size=crop_size, ignore_index=void)
test_pipeline = _base_.test_pipeline
test_pipeline[1].update(scale=(480, 360))
tta_pipeline = _base_.tta_pipeline
tta_pipeline[1].transforms[0] = [
    dict(type='Resize', scale=(int(480 * r), int(360 * r)), keep_ratio=True) for r in (0.75, 1.0, 1.25)
]
dataset = dict(
    type='BaseSegDataset',
    data_root=data_root,
    metainfo=dict(classes=classes, palette=palette),
    ignore_index=void,
)
train_dataloader = dict(
    batch_size=batch_size,
    num_workers=2,
    dataset=dict(
        pipeline=train_pipeline,
        data_prefix=dict(img_path='images/train', seg_map_path='annotations/train'),
        **dataset,
    ),
)
val_dataloader = dict(
    num_workers=2,
    dataset=dict(
        pipeline=test_pipeline,
        data_prefix=dict(img_path='images/val', seg_map_path='annotations/val'),
        **dataset,
    ),
)
test_dataloader = dict(
    num_workers=2,
    dataset=dict(
        pipeline=test_pipeline,
        data_prefix=dict(img_path='images/test', seg_map_path='annotations/test'),
        **dataset,
    ),
)
val_evaluator = dict(ignore_index=void)
counted = dict(type='ConfusionMetric', ignore_index=void, per_class=['iou'])
test_evaluator = [
    dict(type='IoUMetric', iou_metrics=['mIoU'], ignore_index=void),
    counted,
    dict(prefix='trimap', trimap_radius=3, **counted),  # pixels near outlines only
]
auto_scale_lr = dict(base_batch_size=batch_size)
default_hooks = dict(visualization=dict(interval=20))
camvid_iters = 12000
camvid_schedule = [
    dict(type='LinearLR', start_factor=0.01, begin=0, end=300, by_epoch=False),
    dict(type='PolyLR', eta_min=0, power=0.9, begin=300, end=camvid_iters, by_epoch=False),
]
