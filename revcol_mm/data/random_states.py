"""The states of the random generators that data pipelines and models draw from."""

import random
from contextlib import contextmanager
from typing import Iterator

import numpy as np
import torch


@contextmanager
def restored_random_states() -> Iterator[None]:
    """Restore the states of Python, NumPy and torch (on the CPU) at the end."""
    python_state, numpy_state = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)
