"""Operations that know nothing of ConvNeXt blocks, images or OpenMMLab; they need torch only."""

from .coupling import Coupling, bound_alpha, couple, uncouple

__all__ = ['Coupling', 'bound_alpha', 'couple', 'uncouple']
