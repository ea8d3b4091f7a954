# 2 reversible columns of DINOv3's ConvNeXt-T, whose licence wants the file to be downloaded by hand:
# https://ai.meta.com/resources/models-and-libraries/dinov3-downloads/. Numbers are ours.
_base_ = ['columns_convnext_t.py']

columns = dict(init_cfg=dict(checkpoint='{{$DINOV3:data/dinov3_convnext_tiny_pretrain_lvd1689m.pth}}'))
