from .column_statistics import ColumnStatisticsHook
from .fully_sharded_runner import FullyShardedRunner
from .layer_decay import LayerDecayOptimWrapperConstructor
from .load_from import LoadFromHook
from .nonfinite import NonFiniteHook
from .prediction_pictures import PredictionPicturesHook
from .runner import ResumableRunner
from .safe_globals import allow_mmengine_globals

__all__ = [
    'ColumnStatisticsHook',
    'FullyShardedRunner',
    'LayerDecayOptimWrapperConstructor',
    'LoadFromHook',
    'NonFiniteHook',
    'PredictionPicturesHook',
    'ResumableRunner',
    'allow_mmengine_globals',
]
