from .column_statistics import ColumnStatisticsHook
from .fully_sharded_runner import FullyShardedRunner
from .layer_decay import LayerDecayOptimWrapperConstructor
from .load_from import LoadFromHook
from .nonfinite import NonFiniteHook
from .runner import ResumableRunner

__all__ = [
    'ColumnStatisticsHook',
    'FullyShardedRunner',
    'LayerDecayOptimWrapperConstructor',
    'LoadFromHook',
    'NonFiniteHook',
    'ResumableRunner',
]
