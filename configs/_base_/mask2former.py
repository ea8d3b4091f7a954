# Mask2Former for the 150 classes of ADE20K. Unless a comment says otherwise, values are those of
# MMSegmentation's mask2former_swin-b-in22k-384x384-pre_8xb2-160k_ade20k-640x640.
_base_ = ['mask2former_head.py']

num_classes = 150
model = dict(
    type='EncoderDecoder',
    backbone=dict(type='RevCol'),
    decode_head=dict(
        # MMSegmentation's Mask2FormerHead with an ignored label and sliding-window inference
        type='SemanticMask2FormerHead',
        num_classes=num_classes,
        align_corners=False,
        train_cfg=_base_.mask2former_train_cfg,
        **_base_.mask2former_head,
    ),
    train_cfg=dict(),
    test_cfg=dict(mode='whole'),
)
model['decode_head']['loss_cls']['class_weight'] = [1.0] * num_classes + [0.1]  # last: 'no object'
no_decay = dict(decay_mult=0.0)
optim_wrapper = dict(
    type='AmpOptimWrapper',  # as in RevCol's published segmentation runs
    optimizer=dict(type='AdamW', lr=1e-4, weight_decay=0.05, eps=1e-8, betas=(0.9, 0.999)),
    clip_grad=dict(max_norm=0.01, norm_type=2),
    constructor='LayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(
        decay_rate=0.9,  # RevCol's UPerNet with IN-22K weights; its Mask2Former recipe is not published
        custom_keys=dict(query_embed=no_decay, query_feat=no_decay, level_embed=no_decay),
    ),
)
max_iters = 160000
train_cfg = dict(type='IterBasedTrainLoop', max_iters=max_iters, val_interval=5000)
param_scheduler = [
    dict(type='PolyLR', eta_min=0, power=0.9, begin=0, end=max_iters, by_epoch=False),
]
