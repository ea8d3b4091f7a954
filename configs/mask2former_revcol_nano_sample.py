# `make demo`: the family of mask2former_revcol_b_ade20k.py, scaled down to train on 2 CPU cores in minutes
# on the scenes of tools/prepare_sample_data.py. All numbers are ours.
_base_ = ['mask2former_revcol_b_ade20k.py']

classes = ('background', *'0123456789')
num_classes = len(classes)
palette = [
    [20, 20, 20],
    *([230, 25, 75], [60, 180, 75], [255, 225, 25], [0, 130, 200], [245, 130, 48]),
    *([145, 30, 180], [70, 240, 240], [240, 50, 230], [210, 245, 60], [250, 190, 212]),
]
metainfo = dict(classes=classes, palette=palette)
embed_dims = 64
crop_size = (128, 128)

model = dict(
    data_preprocessor=dict(size=crop_size),
    backbone=dict(
        arch='nano',
        drop_path_rate=0.0,
        layer_scale_init_value=1.0,  # as ConvNeXt's detectors: 1e-6 takes longer than this schedule
        init_cfg=None,
    ),
    decode_head=dict(
        in_channels=_base_.revcol_channels['nano'],
        feat_channels=embed_dims,
        out_channels=embed_dims,
        num_classes=num_classes,
        num_queries=20,
        pixel_decoder=dict(
            norm_cfg=dict(num_groups=8),
            encoder=dict(
                num_layers=1,
                layer_cfg=dict(
                    self_attn_cfg=dict(embed_dims=embed_dims, num_heads=4),
                    ffn_cfg=dict(embed_dims=embed_dims, feedforward_channels=128),
                ),
            ),
            positional_encoding=dict(num_feats=embed_dims // 2),
        ),
        positional_encoding=dict(num_feats=embed_dims // 2),
        transformer_decoder=dict(
            num_layers=2,
            layer_cfg=dict(
                self_attn_cfg=dict(embed_dims=embed_dims, num_heads=4),
                cross_attn_cfg=dict(embed_dims=embed_dims, num_heads=4),
                ffn_cfg=dict(embed_dims=embed_dims, feedforward_channels=128),
            ),
        ),
        loss_cls=dict(class_weight=[1.0] * num_classes + [0.1]),
        train_cfg=dict(num_points=512),
    ),
)

train_pipeline = _base_.train_pipeline
train_pipeline[2].update(scale=(512, 128), ratio_range=(0.875, 1.5))
train_pipeline[3].update(crop_size=crop_size, cat_max_ratio=0.95)
train_pipeline[4].update(prob=0.0)  # a mirrored digit is another one, or none
test_pipeline = _base_.test_pipeline
test_pipeline[1].update(scale=(512, 160))
tta_pipeline = _base_.tta_pipeline
tta_pipeline[1].transforms[0] = [
    dict(type='Resize', scale=(512, side), keep_ratio=True) for side in (128, 160)
]
tta_pipeline[1].transforms[1] = [dict(type='RandomFlip', prob=0.0)]
sample = dict(
    type='BaseSegDataset', data_root='data/sample/ade20k', metainfo=metainfo, reduce_zero_label=True
)
train_dataloader = dict(
    batch_size=8,
    num_workers=0,
    persistent_workers=False,
    dataset=dict(pipeline=train_pipeline, **sample),
)
val_dataloader = dict(num_workers=0, persistent_workers=False, dataset=dict(pipeline=test_pipeline, **sample))
test_dataloader = val_dataloader
test_evaluator = [dict(type='IoUMetric', iou_metrics=['mIoU']), dict(type='CommonestClassIoU')]

max_iters = 500
train_cfg = dict(max_iters=max_iters, val_interval=max_iters)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, begin=0, end=50, by_epoch=False),
    dict(type='PolyLR', eta_min=0, power=0.9, begin=50, end=max_iters, by_epoch=False),
]
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(lr=1e-3),
    clip_grad=dict(max_norm=1.0),
    paramwise_cfg=dict(decay_rate=1.0),  # nothing is pretrained
)
default_hooks = dict(
    logger=dict(interval=20),
    checkpoint=dict(interval=max_iters),
    visualization=dict(interval=10),
)
