from .column import Column, bound_alpha, bound_alphas_
from .convnext_block import ConvNeXtBlock
from .image_decoders import LevelwiseDecoder, PixelShuffleDecoder
from .init_layer import init_layer
from .layer_norm import LayerNorm2d
from .level import Level, LevelFusion
from .pointwise_linear import PointwiseLinear
from .stage_levels import LightLevel, StageLevel

__all__ = [
    'Column',
    'ConvNeXtBlock',
    'LayerNorm2d',
    'Level',
    'LevelFusion',
    'LevelwiseDecoder',
    'LightLevel',
    'PixelShuffleDecoder',
    'PointwiseLinear',
    'StageLevel',
    'bound_alpha',
    'bound_alphas_',
    'init_layer',
]
