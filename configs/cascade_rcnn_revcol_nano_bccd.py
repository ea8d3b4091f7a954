# Cascade R-CNN, without masks, on BCCD, from scratch. All hyper-parameters are ours.
_base_ = ['_base_/cascade_mask_rcnn.py', '_base_/bccd.py']

num_classes = len(_base_.classes)
width = 64
norm_cfg = dict(type='BN', requires_grad=True)  # also in the neck: it helps on little data
bbox_heads = _base_.model.roi_head.bbox_head
for head in bbox_heads:
    head.update(
        num_shared_convs=1,
        in_channels=width,
        conv_out_channels=width,
        fc_out_channels=256,
        num_classes=num_classes,
        norm_cfg=norm_cfg,
    )
rcnn = _base_.model.train_cfg.rcnn
for stage in rcnn:
    stage.sampler.update(num=128)
model = dict(
    data_preprocessor=_base_.data_preprocessor,
    backbone=dict(arch='nano', drop_path_rate=0.0, layer_scale_init_value=1.0),
    neck=dict(in_channels=_base_.revcol_channels['nano'], out_channels=width, norm_cfg=norm_cfg),
    rpn_head=dict(in_channels=width, feat_channels=width, anchor_generator=dict(scales=[4])),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=width, finest_scale=28),  # half the default, like the objects
        bbox_head=bbox_heads,
        mask_roi_extractor=None,
        mask_head=None,
    ),
    train_cfg=dict(
        rpn=dict(allowed_border=-1),
        rpn_proposal=dict(nms_pre=500, max_per_img=500),
        rcnn=rcnn,
    ),
    test_cfg=dict(rpn=dict(nms_pre=500, max_per_img=200)),
)
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(lr=1e-3),
    clip_grad=dict(max_norm=10.0),
    paramwise_cfg=dict(decay_rate=1.0),  # the backbone is not pretrained
)
