"""RevCol, the Reversible Column Network, for MMEngine, MMDetection, MMSegmentation and MMPretrain.

Importing the package registers its classes with MMEngine's root registries, where every OpenMMLab package
finds them: ``custom_imports = dict(imports=['revcol_mm'])`` in a config is enough. The import changes other
packages in these places only, and only by additions, except for one setting of MMPretrain:

- MMEngine's root registries: models, a data set, hooks and more, under new names.
- MMEngine's file backends: 'atomic', by which ResumableRunner writes checkpoints.
- The types that ``torch.load(weights_only=True)`` accepts: those in MMEngine's checkpoints, so that runs can
  resume from them, see :mod:`revcol_mm.checkpoints.safe_globals`.
- PyTorch's operators: ``revcol::couple`` and ``revcol::uncouple``, the sums of reversible training.
- Python's import system: finds ``mmcv._ext`` and ``panopticapi`` where they are not installed, see
  :mod:`revcol_mm.supplied_modules`.
- MMPretrain, if transformers 5 is installed: its multimodal models are disabled, see
  :mod:`revcol_mm.transformers_5`.

Creating a ResumableRunner, or starting a run with a LoadFromHook, changes how MMEngine reads checkpoints for
the rest of the process, see :func:`revcol_mm.training.load_from.restrict_loading`.
"""

from importlib import import_module
from typing import Any

from .supplied_modules import supply_modules
from .transformers_5 import leave_out_multimodal_models

__version__ = '0.2.0'

supply_modules()
leave_out_multimodal_models()
_missing = None
try:
    from .checkpoints.safe_globals import allow_mmengine_globals
    from .evaluation import CommonestClassIoU, ConfusionMetric
    from .models import ColumnSupervision, RevCol, RevColClassifier
    from .preflight import PreflightHook
    from .training import ColumnStatisticsHook, LayerDecayOptimWrapperConstructor, LoadFromHook
    from .visualization import PredictionPicturesHook

    allow_mmengine_globals()
except ModuleNotFoundError as error:
    if (error.name or 'revcol_mm').startswith('revcol_mm'):
        raise
    _missing = error  # `python -m revcol_mm.check_env` imports this file, and must be able to report it

_LAZY = {'get_config': 'revcol_mm.config.find', 'load': 'revcol_mm.apis.hub'}  # slow to import


def __getattr__(name: str) -> Any:
    if _missing is not None:
        raise ImportError(f'{_missing}; run: python -m revcol_mm.check_env') from _missing
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


__all__ = [
    'ColumnStatisticsHook',
    'ColumnSupervision',
    'CommonestClassIoU',
    'ConfusionMetric',
    'LayerDecayOptimWrapperConstructor',
    'LoadFromHook',
    'PredictionPicturesHook',
    'PreflightHook',
    'RevCol',
    'RevColClassifier',
    'get_config',
    'load',
]
