"""RevCol, the Reversible Column Network, for MMEngine, MMDetection, MMSegmentation and MMPretrain.

Importing the package registers all of it with MMEngine's root registries, where every OpenMMLab package
finds it: ``custom_imports = dict(imports=['revcol_mm'])`` in a config is enough. Of other packages it adds to
these, and replaces nothing of theirs but one setting:

- MMEngine's root registries, by names that they did not have: models, a data set, hooks, and more.
- MMEngine's file backends, 'atomic': ResumableRunner writes its checkpoints by it.
- What ``torch.load(weights_only=True)`` reads: what MMEngine's own checkpoints hold beside weights, so that
  they can be resumed from; see :mod:`revcol_mm.checkpoints.safe_globals`.
- PyTorch's operators, ``revcol::couple`` and ``revcol::uncouple``: the sums of reversible training.
- Where transformers 5 is installed, that MMPretrain leaves out its multimodal models; see
  :mod:`revcol_mm.transformers_5`.
- Where Python looks for modules: ``mmcv._ext`` and ``panopticapi``, where these are not installed; see
  :mod:`revcol_mm.supplied_modules`.

How MMEngine reads checkpoints changes only when a ResumableRunner, which this project's tools use, is made or
a run with a LoadFromHook begins, and then for the rest of the process: see
:func:`revcol_mm.training.load_from.restrict_loading`.
"""

from importlib import import_module
from typing import Any

from .supplied_modules import supply_modules
from .transformers_5 import leave_out_multimodal_models

__version__ = '0.1.0'

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
    # `python -m revcol_mm.check_env`, which imports this file first, must be able to say what is missing.
    _missing = error

_LAZY = {'get_config': 'revcol_mm.config.find', 'load': 'revcol_mm.apis.hub'}  # which import much more


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
