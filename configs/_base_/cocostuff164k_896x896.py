# COCO-Stuff-164k at 896x896 crops, where MMSegmentation puts it. Its label files count from 0 and have no
# background.
_base_ = ['ade20k_896x896.py']

data_root = 'data/coco_stuff164k'
train_pipeline = _base_.train_pipeline
test_pipeline = _base_.test_pipeline
tta_pipeline = _base_.tta_pipeline
for load in (train_pipeline[1], test_pipeline[2], tta_pipeline[1].transforms[2][0]):
    load.update(reduce_zero_label=False)
dataset = dict(type='COCOStuffDataset', data_root=data_root)
train_dataloader = dict(
    dataset=dict(
        data_prefix=dict(img_path='images/train2017', seg_map_path='annotations/train2017'),
        pipeline=train_pipeline,
        **dataset,
    ),
)
val_dataloader = dict(
    dataset=dict(
        data_prefix=dict(img_path='images/val2017', seg_map_path='annotations/val2017'),
        pipeline=test_pipeline,
        **dataset,
    ),
)
test_dataloader = val_dataloader
