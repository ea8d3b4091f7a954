# Variables for a backbone of 2 reversible columns of DINOv3's ConvNeXt-T. Its licence requires you to
# download the weights yourself: https://ai.meta.com/resources/models-and-libraries/dinov3-downloads/. The
# environment variable DINOV3 overrides their path. All hyper-parameters are ours.
_base_ = ['columns_convnext_t.py']

columns = dict(init_cfg=dict(checkpoint='{{$DINOV3:data/dinov3_convnext_tiny_pretrain_lvd1689m.pth}}'))
