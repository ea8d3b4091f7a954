from .column import Column
from .convnext_block import ConvNeXtBlock
from .image_decoders import LevelwiseDecoder, PixelShuffleDecoder, reconstruction_loss
from .layer_norm import LayerNorm2d
from .pointwise_linear import PointwiseLinear

__all__ = [
    'Column',
    'ConvNeXtBlock',
    'LayerNorm2d',
    'LevelwiseDecoder',
    'PixelShuffleDecoder',
    'PointwiseLinear',
    'reconstruction_loss',
]
