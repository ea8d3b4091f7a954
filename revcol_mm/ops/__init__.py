"""Operations that know nothing of ConvNeXt blocks, images or OpenMMLab; they need torch only."""

from .chain import Chain
from .coupling import Coupling, bound_alpha, couple, uncouple
from .reversible import ReversibleChain

__all__ = ['Chain', 'Coupling', 'ReversibleChain', 'bound_alpha', 'couple', 'uncouple']
