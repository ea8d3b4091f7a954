# DINO, 5 scales, on RevCol-XL, COCO, 36 epochs, like dino_revcol_l_coco.py. IN-22K weights of this size are
# not published; revcol_xl_in22k.py trains them.
_base_ = ['dino_revcol_l_coco.py']

model = dict(
    backbone=dict(arch='xlarge', init_cfg=dict(checkpoint='work_dirs/revcol_xl_in22k/epoch_90.pth')),
    neck=dict(in_channels=_base_.revcol_channels['xlarge']),
)
