# UPerNet on RevCol-H with 7x7 kernels, ADE20K, 640x640 crops. Published result: 57.8 mIoU.
_base_ = ['upernet_revcol_l_ade20k.py']

channels = _base_.revcol_channels['huge']
model = dict(
    backbone=dict(
        arch='huge',
        kernel_size=7,
        save_memory=True,  # ours; RevCol-XL, 256x256, float32: 0.34 GiB instead of 1.41
        init_cfg=dict(checkpoint=_base_.revcol_hub + 'segmentation/revcol_huge_k7padded.pth'),
    ),
    decode_head=dict(in_channels=channels, channels=channels[2]),
    auxiliary_head=dict(in_channels=channels[2]),
)
train_dataloader = dict(batch_size=1)  # released config; with 16 GPUs the 16 images of the paper
