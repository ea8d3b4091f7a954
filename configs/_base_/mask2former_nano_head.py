# Variables for a Mask2Former head that is small enough to learn the sample data in minutes. All
# hyper-parameters are ours.
embed_dims_nano = 64
attention_nano = dict(embed_dims=embed_dims_nano, num_heads=4)
ffn_nano = dict(embed_dims=embed_dims_nano, feedforward_channels=128)
position_nano = dict(num_feats=embed_dims_nano // 2)
mask2former_nano_head = dict(
    feat_channels=embed_dims_nano,
    out_channels=embed_dims_nano,
    num_queries=20,
    pixel_decoder=dict(
        norm_cfg=dict(num_groups=8),
        encoder=dict(num_layers=1, layer_cfg=dict(self_attn_cfg=attention_nano, ffn_cfg=ffn_nano)),
        positional_encoding=position_nano,
    ),
    positional_encoding=position_nano,
    transformer_decoder=dict(
        num_layers=2,
        layer_cfg=dict(self_attn_cfg=attention_nano, cross_attn_cfg=attention_nano, ffn_cfg=ffn_nano),
    ),
)
mask2former_nano_optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(lr=1e-3),
    clip_grad=dict(max_norm=1.0),
    # The backbone is not pretrained.
    paramwise_cfg=dict(decay_rate=1.0, custom_keys=dict(backbone=dict(lr_mult=1.0))),
)
