"""Let ``torch.load(weights_only=True)`` read MMEngine's checkpoints.

Since torch 2.6 ``weights_only=True`` is the default, so MMEngine 0.10.7 cannot resume from its own
checkpoints: ``Weights only load failed ... HistoryBuffer``. Adding these data types to torch's allow-list is
the safe remedy.
"""

from typing import Any, Callable

import numpy as np
import torch
from mmengine.logging import HistoryBuffer


def _statistics_method(owner: Any, name: str) -> Callable:
    """Replacement for ``getattr`` in pickles of HistoryBuffer, restricted to its statistics methods."""
    HistoryBuffer()  # registers its statistics methods
    if owner is not HistoryBuffer or name not in HistoryBuffer._statistics_methods:
        raise ValueError(f'a checkpoint asks for getattr({owner!r}, {name!r})')
    return HistoryBuffer._statistics_methods[name]


def allow_mmengine_globals() -> None:
    """Allow ``weights_only=True`` to read the message hub's log buffers, and NumPy arrays and scalars.

    Import calls this once, and the readers of this package again: MMEngine of the onedl forks forbids these
    types after each file that it reads.
    """
    dtypes = {type(np.dtype(name)) for name in ('f2', 'f4', 'f8', 'i1', 'i4', 'i8', 'u1', 'bool')}
    rebuild_array: Any = np.empty(0).__reduce__()[0]
    rebuild_scalar: Any = np.float64(0).__reduce__()[0]
    torch.serialization.add_safe_globals(
        [
            HistoryBuffer,
            (_statistics_method, 'builtins.getattr'),
            np.ndarray,
            np.dtype,
            *dtypes,
            # The module is called _core since NumPy 2, and was called core before.
            *((rebuild_array, f'numpy.{core}.multiarray._reconstruct') for core in ('_core', 'core')),
            *((rebuild_scalar, f'numpy.{core}.multiarray.scalar') for core in ('_core', 'core')),
        ]
    )
