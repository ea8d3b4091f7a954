# Mask2Former for panoptic segmentation of COCO: 80 thing and 53 stuff classes. Unless a comment says
# otherwise, values are those of MMDetection's mask2former_swin-t-p4-w7-224_8xb2-lsj-50e_coco-panoptic.
_base_ = ['mask2former_coco.py']

num_stuff_classes = 53
pad = dict(pad_seg=True, seg_pad_value=255)
data_preprocessor = _base_.model.data_preprocessor
data_preprocessor.update(pad)
data_preprocessor.batch_augments[0].update(pad)
model = dict(
    data_preprocessor=data_preprocessor,
    panoptic_head=dict(num_stuff_classes=num_stuff_classes),
    panoptic_fusion_head=dict(num_stuff_classes=num_stuff_classes),
    test_cfg=dict(panoptic_on=True),
)
model['panoptic_head']['loss_cls'] = dict(
    class_weight=[1.0] * (_base_.num_classes + num_stuff_classes) + [0.1]
)
load = dict(type='LoadPanopticAnnotations')
train_pipeline = [
    dict(type='LoadImageFromFile', to_float32=True),
    load,
    *_base_.jitter,
    dict(type='PackDetInputs'),
]
test_pipeline = _base_.test_pipeline
test_pipeline[0] = dict(type='LoadImageFromFile')
test_pipeline[2] = load
train_dataloader = dict(
    dataset=dict(
        type='CocoPanopticDataset',
        ann_file='annotations/panoptic_train2017.json',
        data_prefix=dict(seg='annotations/panoptic_train2017/'),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    dataset=dict(
        type='CocoPanopticDataset',
        ann_file='annotations/panoptic_val2017.json',
        data_prefix=dict(seg='annotations/panoptic_val2017/'),
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
tta_model = None  # not implemented for panoptic segmentation
val_evaluator = [
    dict(
        type='CocoPanopticMetric',
        ann_file=_base_.data_root + 'annotations/panoptic_val2017.json',
        seg_prefix=_base_.data_root + 'annotations/panoptic_val2017/',
    ),
    _base_.val_evaluator,
]
test_evaluator = val_evaluator
default_hooks = dict(checkpoint=dict(save_best='coco_panoptic/PQ', rule='greater'))
