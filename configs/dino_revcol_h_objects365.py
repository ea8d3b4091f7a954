# DINO, 5 scales, on RevCol-H, Objects365 v2, 12 epochs: the pre-training for dino_revcol_h_coco.py. The
# schedule is ours (MMDetection's 12 epochs), image sizes are those of InternImage-H.
_base_ = ['_base_/dino_large_scale.py']

num_classes = 365
model = dict(
    backbone=dict(
        arch='huge',
        drop_path_rate=0.4,
        init_cfg=dict(
            type='Pretrained', checkpoint=_base_.revcol_hub + 'classification/revcol_huge_megdata.pth'
        ),
    ),
    neck=dict(in_channels=_base_.revcol_channels['huge']),
    bbox_head=dict(num_classes=num_classes),
)
data_root = 'data/Objects365/Obj365_v2/'
dataset = dict(type='Objects365V2Dataset', data_root=data_root)
train_dataloader = dict(
    dataset=dict(ann_file='annotations/zhiyuan_objv2_train.json', data_prefix=dict(img='train/'), **dataset)
)
val_dataloader = dict(
    dataset=dict(ann_file='annotations/zhiyuan_objv2_val.json', data_prefix=dict(img='val/'), **dataset)
)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + 'annotations/zhiyuan_objv2_val.json')
test_evaluator = val_evaluator
