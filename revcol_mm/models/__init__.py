from .backbones import RevCol
from .classifiers import RevColClassifier
from .supervision import ColumnSupervision

__all__ = ['ColumnSupervision', 'RevCol', 'RevColClassifier']
