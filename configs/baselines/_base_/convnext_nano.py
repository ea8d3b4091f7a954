# Variables for a backbone of MMPretrain's ConvNeXt with the size of RevCol nano. All hyper-parameters are
# ours.
convnext_channels = [37, 74, 148, 296]
convnext = dict(
    type='mmpretrain.ConvNeXt',
    arch=dict(depths=[3, 3, 9, 3], channels=convnext_channels),
    layer_scale_init_value=1.0,
    out_indices=(0, 1, 2, 3),
    gap_before_final_norm=False,
)
