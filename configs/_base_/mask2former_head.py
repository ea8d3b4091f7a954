# Variables for Mask2Former's head and the assignment of its targets. Values are those of MMSegmentation's
# mask2former_swin-b-in22k-384x384-pre_8xb2-160k_ade20k-640x640 and of MMDetection.
embed_dims = 256
ffn = dict(
    embed_dims=embed_dims,
    num_fcs=2,
    act_cfg=dict(type='ReLU', inplace=True),
    ffn_drop=0.0,
)
attention = dict(
    embed_dims=embed_dims,
    num_heads=8,
    attn_drop=0.0,
    proj_drop=0.0,
    dropout_layer=None,
    batch_first=True,
)
position = dict(num_feats=embed_dims // 2, normalize=True)
mask2former_head = dict(
    strides=[4, 8, 16, 32],
    feat_channels=embed_dims,
    out_channels=embed_dims,
    num_queries=100,
    num_transformer_feat_level=3,
    pixel_decoder=dict(
        type='mmdet.MSDeformAttnPixelDecoder',
        num_outs=3,
        norm_cfg=dict(type='GN', num_groups=32),
        act_cfg=dict(type='ReLU'),
        encoder=dict(
            num_layers=6,
            layer_cfg=dict(
                self_attn_cfg=dict(
                    embed_dims=embed_dims,
                    num_heads=8,
                    num_levels=3,
                    num_points=4,
                    im2col_step=64,
                    dropout=0.0,
                    batch_first=True,
                ),
                ffn_cfg=dict(feedforward_channels=1024, **ffn),
            ),
        ),
        positional_encoding=position,
    ),
    enforce_decoder_input_project=False,
    positional_encoding=position,
    transformer_decoder=dict(
        return_intermediate=True,
        num_layers=9,
        layer_cfg=dict(
            self_attn_cfg=attention,
            cross_attn_cfg=attention,
            ffn_cfg=dict(feedforward_channels=2048, dropout_layer=None, add_identity=True, **ffn),
        ),
    ),
    loss_cls=dict(
        type='mmdet.CrossEntropyLoss',
        use_sigmoid=False,
        loss_weight=2.0,
        reduction='mean',
    ),
    loss_mask=dict(type='mmdet.CrossEntropyLoss', use_sigmoid=True, reduction='mean', loss_weight=5.0),
    loss_dice=dict(
        type='mmdet.DiceLoss',
        use_sigmoid=True,
        activate=True,
        reduction='mean',
        naive_dice=True,
        eps=1.0,
        loss_weight=5.0,
    ),
)
mask2former_train_cfg = dict(
    num_points=12544,
    oversample_ratio=3.0,
    importance_sample_ratio=0.75,
    assigner=dict(
        type='mmdet.HungarianAssigner',
        match_costs=[
            dict(type='mmdet.ClassificationCost', weight=2.0),
            dict(type='mmdet.CrossEntropyLossCost', weight=5.0, use_sigmoid=True),
            dict(type='mmdet.DiceCost', weight=5.0, pred_act=True, eps=1.0),
        ],
    ),
    sampler=dict(type='mmdet.MaskPseudoSampler'),
)
