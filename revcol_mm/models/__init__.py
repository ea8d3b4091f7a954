from .backbones import ColumnBackbone, RevCol, ReversibleColumns
from .classifiers import RevColClassifier
from .layers import Column
from .reversible_blocks import ReversibleBlocks
from .stages import Stages, split_stages
from .supervision import ColumnSupervision

__all__ = [
    'Column',
    'ColumnBackbone',
    'ColumnSupervision',
    'RevCol',
    'RevColClassifier',
    'ReversibleBlocks',
    'ReversibleColumns',
    'Stages',
    'split_stages',
]
