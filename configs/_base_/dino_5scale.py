# DINO with 5 scales for large backbones, trained reversibly. Values are those of MMDetection's
# dino-5scale_swin-l_8xb2-12e_coco.
_base_ = ['dino_coco.py']

num_levels = 5
model = dict(
    num_feature_levels=num_levels,
    # RevCol-L stores 0.16 GiB of activations instead of 1.72 for a 384x384 image in float32.
    backbone=dict(out_indices=(0, 1, 2, 3), save_memory=True),
    neck=dict(num_outs=num_levels),
    encoder=dict(layer_cfg=dict(self_attn_cfg=dict(num_levels=num_levels))),
    decoder=dict(layer_cfg=dict(cross_attn_cfg=dict(num_levels=num_levels))),
)
