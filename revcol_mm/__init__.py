"""RevCol, the Reversible Column Network, for MMEngine, MMDetection, MMSegmentation and MMPretrain.

Importing the package registers all of it with MMEngine's root registries, where every OpenMMLab package
finds it: ``custom_imports = dict(imports=['revcol_mm'])`` in a config is enough.
"""

__version__ = '0.1.0'

try:
    from .engine import (
        ColumnStatisticsHook,
        LayerDecayOptimWrapperConstructor,
        LoadFromHook,
        PreflightHook,
        ReversibleCheckHook,
        allow_mmengine_globals,
    )
    from .evaluation import CommonestClassIoU, ConfusionMetric
    from .models import ColumnSupervision, RevCol, RevColClassifier

    allow_mmengine_globals()
except ModuleNotFoundError as error:
    if (error.name or 'revcol_mm').startswith('revcol_mm'):
        raise
    # `python -m revcol_mm.check_env`, which imports this file first, must be able to say what is missing.
    _missing = error

    def __getattr__(name: str):
        raise ImportError(f'{_missing}; run: python -m revcol_mm.check_env') from _missing


__all__ = [
    'ColumnStatisticsHook',
    'ColumnSupervision',
    'CommonestClassIoU',
    'ConfusionMetric',
    'LayerDecayOptimWrapperConstructor',
    'LoadFromHook',
    'PreflightHook',
    'RevCol',
    'RevColClassifier',
    'ReversibleCheckHook',
]
