# Mask2Former on the largest backbones. RevCol's recipe is not published. Unless a comment says otherwise,
# values are those of InternImage-H's Mask2Former on ADE20K (62.6 mIoU).
_base_ = ['mask2former.py']

embed_dims = 1024
wide = dict(embed_dims=embed_dims)
ffn = dict(embed_dims=embed_dims, feedforward_channels=4 * embed_dims)
position = dict(num_feats=embed_dims // 2)
model = dict(
    backbone=dict(
        drop_path_rate=0.4,  # RevCol-H's fine-tuning on ImageNet
        save_memory=True,  # RevCol-XL, 256x256, float32: 0.34 GiB instead of 1.41
    ),
    decode_head=dict(
        feat_channels=embed_dims,
        out_channels=embed_dims,
        num_queries=200,
        pixel_decoder=dict(
            encoder=dict(layer_cfg=dict(self_attn_cfg=dict(num_heads=32, **wide), ffn_cfg=ffn)),
            positional_encoding=position,
        ),
        positional_encoding=position,
        transformer_decoder=dict(
            layer_cfg=dict(
                self_attn_cfg=dict(num_heads=32, **wide),
                cross_attn_cfg=dict(num_heads=32, **wide),
                ffn_cfg=ffn,
            ),
        ),
    ),
)
optim_wrapper = dict(optimizer=dict(lr=1e-5), clip_grad=dict(max_norm=0.1))
max_iters = 80000
train_cfg = dict(max_iters=max_iters)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, begin=0, end=1500, by_epoch=False),
    dict(type='PolyLR', eta_min=0, power=1.0, begin=1500, end=max_iters, by_epoch=False),
]
