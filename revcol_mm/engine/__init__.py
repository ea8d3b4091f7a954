from .layer_decay import LayerDecayOptimWrapperConstructor
from .load_from import LoadFromHook
from .preflight import PreflightHook
from .reversible_check import ReversibleCheckHook
from .safe_globals import allow_mmengine_globals

__all__ = [
    'LayerDecayOptimWrapperConstructor',
    'LoadFromHook',
    'PreflightHook',
    'ReversibleCheckHook',
    'allow_mmengine_globals',
]
