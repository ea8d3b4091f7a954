# Mask2Former on RevCol-S, IN-1K weights, ADE20K, 512x512 crops, like mask2former_revcol_t_ade20k.py. Head and
# schedule are those of MMSegmentation's Swin-S, layer decay and drop path those of RevCol-S's UPerNet.
_base_ = ['mask2former_revcol_t_ade20k.py']

model = dict(
    backbone=dict(arch='small', init_cfg=dict(checkpoint=_base_.revcol_weights + 'revcol_small_1k.pth')),
    decode_head=dict(in_channels=_base_.revcol_channels['small']),
)
