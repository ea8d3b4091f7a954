# Channels of each arch's levels, for the in_channels of necks and heads (RevCol paper, table 1).
# tests/test_configs.py holds them against the backbone's own table.
revcol_channels = dict(
    nano=[32, 64, 128, 256],
    tiny=[64, 128, 256, 512],
    small=[64, 128, 256, 512],
    base=[72, 144, 288, 576],
    large=[128, 256, 512, 1024],
    xlarge=[224, 448, 896, 1792],
    huge=[360, 720, 1440, 2880],
)
revcol_weights = 'https://github.com/megvii-research/RevCol/releases/download/checkpoint/'
revcol_hub = 'https://huggingface.co/LarryTsai/RevCol/resolve/main/revcol_models/'
