"""Measuring what reversible training promises; used by the tests and by tools/analysis."""

from .memory import peak_bytes
from .parity import gradients, worst_errors

__all__ = ['gradients', 'peak_bytes', 'worst_errors']
