from .backbones import RevCol

__all__ = ['RevCol']
