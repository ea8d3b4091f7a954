from .column_backbone import ColumnBackbone
from .revcol import RevCol
from .reversible_columns import ReversibleColumns

__all__ = ['ColumnBackbone', 'RevCol', 'ReversibleColumns']
