# DINO on BCCD, from scratch. All hyper-parameters are ours.
_base_ = ['_base_/dino.py', '_base_/bccd.py']

ffn = dict(feedforward_channels=512)
model = dict(
    data_preprocessor=_base_.data_preprocessor,
    num_queries=100,
    backbone=dict(arch='nano', drop_path_rate=0.0, layer_scale_init_value=1.0),
    neck=dict(in_channels=_base_.revcol_channels['nano'][1:]),  # out_channels must be 256 in MMDetection
    encoder=dict(num_layers=1, layer_cfg=dict(ffn_cfg=ffn)),
    decoder=dict(num_layers=3, layer_cfg=dict(ffn_cfg=ffn)),
    bbox_head=dict(num_classes=len(_base_.classes)),
    dn_cfg=dict(group_cfg=dict(num_dn_queries=50)),
    test_cfg=dict(max_per_img=100),
)
optim_wrapper = dict(
    optimizer=dict(lr=5e-4),
    clip_grad=dict(max_norm=1.0),
    paramwise_cfg=dict(decay_rate=1.0),  # the backbone is not pretrained
)
