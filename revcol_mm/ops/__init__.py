"""Operations that know nothing of ConvNeXt blocks, images or OpenMMLab; they need torch only."""

from .coupling import Coupling, bound_alpha, couple, uncouple
from .reversible import ReversibleChain

__all__ = ['Coupling', 'ReversibleChain', 'bound_alpha', 'couple', 'uncouple']
