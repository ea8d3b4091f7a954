from .backbones import ColumnBackbone, RevCol
from .classifiers import RevColClassifier
from .layers import Column
from .supervision import ColumnSupervision

__all__ = ['Column', 'ColumnBackbone', 'ColumnSupervision', 'RevCol', 'RevColClassifier']
