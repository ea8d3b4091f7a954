# A ConvNeXt of MMPretrain as large as RevCol nano, in what a config takes of it. All numbers are ours.
convnext_channels = [37, 74, 148, 296]
convnext = dict(
    type='mmpretrain.ConvNeXt',
    arch=dict(depths=[3, 3, 9, 3], channels=convnext_channels),
    layer_scale_init_value=1.0,
    out_indices=(0, 1, 2, 3),
    gap_before_final_norm=False,
)
