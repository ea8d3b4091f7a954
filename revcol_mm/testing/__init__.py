"""Helpers for tests and benchmarks: comparing gradients, measuring memory, counting kernel launches."""

from .launches import Launches, count_launches
from .memory import peak_bytes
from .parity import ReversibleReport, check_reversible, gradients, worst_errors
from .storing_chain import StoringChain

__all__ = [
    'Launches',
    'ReversibleReport',
    'StoringChain',
    'check_reversible',
    'count_launches',
    'gradients',
    'peak_bytes',
    'worst_errors',
]
