# Mask2Former on RevCol-L, IN-22K weights, COCO instance segmentation, 100 epochs, 16 GPUs x 1 image. Queries
# and schedule are those of MMDetection's Swin-L, drop path that of RevCol-L's Cascade Mask R-CNN.
_base_ = ['_base_/mask2former_coco.py']

model = dict(
    backbone=dict(
        arch='large',
        drop_path_rate=0.5,
        init_cfg=dict(type='Pretrained', checkpoint=_base_.revcol_weights + 'revcol_large_22k.pth'),
    ),
    panoptic_head=dict(in_channels=_base_.revcol_channels['large'], num_queries=200),
)
max_iters = 737500
train_dataloader = dict(batch_size=1)
param_scheduler = [
    dict(type='MultiStepLR', begin=0, end=max_iters, by_epoch=False, milestones=[655556, 710184], gamma=0.1)
]
train_cfg = dict(max_iters=max_iters)
