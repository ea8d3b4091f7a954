# RetinaNet on BCCD, from scratch. Values of the method are those of MMDetection's retinanet_r50_fpn, all
# others are ours.
_base_ = ['_base_/bccd.py']

width = 64
norm_cfg = dict(type='BN', requires_grad=True)
model = dict(
    type='RetinaNet',
    data_preprocessor=_base_.data_preprocessor,
    backbone=dict(
        type='RevCol', arch='nano', drop_path_rate=0.0, layer_scale_init_value=1.0, out_indices=(1, 2, 3)
    ),
    neck=dict(
        type='FPN',
        in_channels=_base_.revcol_channels['nano'][1:],
        out_channels=width,
        num_outs=4,
        norm_cfg=norm_cfg,
    ),
    bbox_head=dict(
        type='RetinaHead',
        num_classes=len(_base_.classes),
        in_channels=width,
        stacked_convs=2,
        feat_channels=width,
        norm_cfg=norm_cfg,
        anchor_generator=dict(
            type='AnchorGenerator',
            octave_base_scale=3,
            scales_per_octave=3,
            ratios=[0.5, 1.0, 2.0],
            strides=[8, 16, 32, 64],
        ),
        bbox_coder=dict(type='DeltaXYWHBBoxCoder', target_means=[0.0] * 4, target_stds=[1.0] * 4),
        loss_cls=dict(type='FocalLoss', use_sigmoid=True, gamma=2.0, alpha=0.25, loss_weight=1.0),
        loss_bbox=dict(type='GIoULoss', loss_weight=2.0),
        reg_decoded_bbox=True,
    ),
    train_cfg=dict(
        assigner=dict(
            type='MaxIoUAssigner', pos_iou_thr=0.5, neg_iou_thr=0.4, min_pos_iou=0, ignore_iof_thr=-1
        ),
        sampler=dict(type='PseudoSampler'),
        allowed_border=-1,
        pos_weight=-1,
        debug=False,
    ),
    test_cfg=dict(
        nms_pre=1000,
        min_bbox_size=0,
        score_thr=0.05,
        nms=dict(type='nms', iou_threshold=0.5),
        max_per_img=100,
    ),
)
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.05),
    clip_grad=dict(max_norm=10.0),
    constructor='LayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(decay_rate=1.0),  # the backbone is not pretrained
)
