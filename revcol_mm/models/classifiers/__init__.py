from .revcol_classifier import RevColClassifier

__all__ = ['RevColClassifier']
