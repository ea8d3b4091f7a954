from .column_backbone import ColumnBackbone
from .revcol import RevCol

__all__ = ['ColumnBackbone', 'RevCol']
