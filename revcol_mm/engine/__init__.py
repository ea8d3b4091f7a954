from .layer_decay import LayerDecayOptimWrapperConstructor
from .safe_globals import allow_mmengine_globals

__all__ = ['LayerDecayOptimWrapperConstructor', 'allow_mmengine_globals']
