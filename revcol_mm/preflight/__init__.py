"""Check a config, its data and its model before a run, so that mistakes are not found hours into it."""

from .channels import check_normalisation, revcol_channels
from .files import check_files
from .hook import PreflightHook
from .sliding_windows import check_sliding_windows

__all__ = [
    'PreflightHook',
    'check_files',
    'check_normalisation',
    'check_sliding_windows',
    'revcol_channels',
]
