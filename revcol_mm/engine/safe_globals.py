"""Let ``torch.load(weights_only=True)`` read what MMEngine's checkpoints hold beside weights.

Since torch 2.6 that is the default, and MMEngine 0.10.7 cannot resume from its own checkpoints:
``Weights only load failed ... HistoryBuffer``. Allow-listing these data types keeps the safety on.
"""

import numpy as np
import torch
from mmengine.logging import HistoryBuffer


def allow_mmengine_globals() -> None:
    """Allow-list the message hub's log buffers and NumPy arrays and scalars, which hold plain data."""
    dtypes = {type(np.dtype(name)) for name in ('f2', 'f4', 'f8', 'i1', 'i4', 'i8', 'u1', 'bool')}
    numpy_core = np.empty(0).__reduce__()[0].__module__  # numpy.core before NumPy 2, then numpy._core
    torch.serialization.add_safe_globals([HistoryBuffer, np.ndarray, np.dtype, *dtypes])
