from .layer_decay import LayerDecayOptimWrapperConstructor
from .reversible_check import ReversibleCheckHook
from .safe_globals import allow_mmengine_globals

__all__ = ['LayerDecayOptimWrapperConstructor', 'ReversibleCheckHook', 'allow_mmengine_globals']
