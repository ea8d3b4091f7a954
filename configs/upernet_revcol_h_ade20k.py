# UPerNet on RevCol-H with 7x7 kernels, ADE20K, 640x640 crops. As published: 57.8 mIoU, but for save_memory.
_base_ = ['_base_/upernet.py', '_base_/ade20k_640x640.py']

channels = _base_.revcol_channels['huge']
model = dict(
    data_preprocessor=_base_.data_preprocessor,
    backbone=dict(
        arch='huge',
        kernel_size=7,
        save_memory=True,  # ours
        init_cfg=dict(
            type='Pretrained', checkpoint=_base_.revcol_hub + 'segmentation/revcol_huge_k7padded.pth'
        ),
    ),
    decode_head=dict(in_channels=channels, channels=channels[2]),
    auxiliary_head=dict(in_channels=channels[2]),
    test_cfg=dict(crop_size=_base_.crop_size, stride=(426, 426)),
)
warmup = _base_.warmup
warmup.update(end=3000)
poly = _base_.poly
poly.update(begin=3000)
param_scheduler = [warmup, poly]
train_dataloader = dict(batch_size=1)  # the released file's; the paper says 16 images a step: 16 GPUs
