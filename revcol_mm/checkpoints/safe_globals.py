"""Let ``torch.load(weights_only=True)`` read what MMEngine's checkpoints hold beside weights.

Since torch 2.6 that is the default, and MMEngine 0.10.7 cannot resume from its own checkpoints:
``Weights only load failed ... HistoryBuffer``. Allow-listing these data types keeps the safety on.
"""

from typing import Any, Callable

import numpy as np
import torch
from mmengine.logging import HistoryBuffer


def _statistics_method(owner: Any, name: str) -> Callable:
    """Stand in for ``getattr``, by which a log buffer's statistics are pickled; good for nothing else."""
    HistoryBuffer()  # registers them
    if owner is not HistoryBuffer or name not in HistoryBuffer._statistics_methods:
        raise ValueError(f'a checkpoint asks for getattr({owner!r}, {name!r})')
    return HistoryBuffer._statistics_methods[name]


def allow_mmengine_globals() -> None:
    """Allow-list the message hub's log buffers, and NumPy arrays and scalars."""
    dtypes = {type(np.dtype(name)) for name in ('f2', 'f4', 'f8', 'i1', 'i4', 'i8', 'u1', 'bool')}
    rebuild_array, rebuild_scalar = (x.__reduce__()[0] for x in (np.empty(0), np.float64(0)))
    torch.serialization.add_safe_globals(
        [
            HistoryBuffer,
            (_statistics_method, 'builtins.getattr'),
            np.ndarray,
            np.dtype,
            *dtypes,
            # the module's name since NumPy 2 and before
            *((rebuild_array, f'numpy.{core}.multiarray._reconstruct') for core in ('_core', 'core')),
            *((rebuild_scalar, f'numpy.{core}.multiarray.scalar') for core in ('_core', 'core')),
        ]
    )
