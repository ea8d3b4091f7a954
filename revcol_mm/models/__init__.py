from .backbones import ColumnBackbone, RevCol, ReversibleColumns
from .classifiers import RevColClassifier
from .layers import Column
from .stages import Stages, split_stages
from .supervision import ColumnSupervision

__all__ = [
    'Column',
    'ColumnBackbone',
    'ColumnSupervision',
    'RevCol',
    'RevColClassifier',
    'ReversibleColumns',
    'Stages',
    'split_stages',
]
