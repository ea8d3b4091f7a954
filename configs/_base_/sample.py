# Variables for all configs of the sample data (tools/prepare_sample_data.py), which train from scratch in
# minutes on 2 CPU cores. All hyper-parameters are ours.
digits = tuple('0123456789')
digit_palette = [
    *((230, 25, 75), (60, 180, 75), (255, 225, 25), (0, 130, 200), (245, 130, 48)),
    *((145, 30, 180), (70, 240, 240), (240, 50, 230), (210, 245, 60), (250, 190, 212)),
]
sample_backbone = dict(
    arch='nano',
    drop_path_rate=0.0,
    layer_scale_init_value=1.0,  # as in ConvNeXt's detectors; 1e-6 learns too slowly for this schedule
)
sample_schedule = [
    dict(type='LinearLR', start_factor=0.01, begin=0, end=50, by_epoch=False),
    dict(type='PolyLR', eta_min=0, power=0.9, begin=50, end=500, by_epoch=False),
]
