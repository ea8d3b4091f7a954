"""Measuring what reversible training promises; used by the tests and by tools/analysis."""

from .memory import peak_bytes
from .parity import ReversibleReport, check_reversible, gradients, worst_errors

__all__ = ['ReversibleReport', 'check_reversible', 'gradients', 'peak_bytes', 'worst_errors']
