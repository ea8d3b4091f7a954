# Cascade Mask R-CNN on RevCol-B, IN-22K weights, COCO, 36 epochs. Published result: 55.0 box AP, 47.5 mask
# AP.
_base_ = ['cascade_mask_rcnn_revcol_b_coco.py']

model = dict(backbone=dict(init_cfg=dict(checkpoint=_base_.revcol_weights + 'revcol_base_22k.pth')))
optim_wrapper = dict(optimizer=dict(lr=1e-4))
