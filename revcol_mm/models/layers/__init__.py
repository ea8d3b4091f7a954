from .column import Column
from .convnext_block import ConvNeXtBlock
from .layer_norm import LayerNorm2d

__all__ = ['Column', 'ConvNeXtBlock', 'LayerNorm2d']
