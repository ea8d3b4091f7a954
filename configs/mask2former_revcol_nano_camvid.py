# Mask2Former with RevCol nano on CamVid, from scratch; see docs/real_data.md. All hyper-parameters are ours.
_base_ = ['_base_/mask2former.py', '_base_/camvid.py']

num_classes = len(_base_.classes)
embed_dims = 64
attention = dict(embed_dims=embed_dims, num_heads=4)
ffn = dict(embed_dims=embed_dims, feedforward_channels=256)
model = dict(
    data_preprocessor=_base_.data_preprocessor,
    backbone=dict(arch='nano', drop_path_rate=0.0, layer_scale_init_value=1.0),
    decode_head=dict(
        in_channels=_base_.revcol_channels['nano'],
        feat_channels=embed_dims,
        out_channels=embed_dims,
        num_classes=num_classes,
        num_queries=30,
        ignore_index=_base_.void,
        pixel_decoder=dict(
            norm_cfg=dict(num_groups=8),
            encoder=dict(num_layers=1, layer_cfg=dict(self_attn_cfg=attention, ffn_cfg=ffn)),
            positional_encoding=dict(num_feats=embed_dims // 2),
        ),
        positional_encoding=dict(num_feats=embed_dims // 2),
        transformer_decoder=dict(
            num_layers=3,
            layer_cfg=dict(self_attn_cfg=attention, cross_attn_cfg=attention, ffn_cfg=ffn),
        ),
        loss_cls=dict(class_weight=[1.0] * num_classes + [0.1]),
        train_cfg=dict(num_points=2048),
    ),
)
max_iters = _base_.camvid_iters
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(lr=5e-4),
    clip_grad=dict(max_norm=1.0),
    paramwise_cfg=dict(decay_rate=1.0),  # the backbone is not pretrained
)
param_scheduler = _base_.camvid_schedule
train_cfg = dict(max_iters=max_iters, val_interval=max_iters // 6)
default_hooks = dict(checkpoint=dict(interval=max_iters // 6))
