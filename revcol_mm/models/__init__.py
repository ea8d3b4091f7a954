from .backbones import RevCol
from .classifiers import RevColClassifier

__all__ = ['RevCol', 'RevColClassifier']
