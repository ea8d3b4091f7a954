"""What is checked before a run: options, files, data and model, so that nothing fails hours into it."""

from .coco_ids import ids_checked
from .errors import PreflightError, building, errors_in_one_line
from .files import check_files, check_scope
from .hook import IGNORE_INDEX, PreflightHook
from .options import merge_options, tell_of_misspelt_keys

__all__ = [
    'IGNORE_INDEX',
    'PreflightError',
    'PreflightHook',
    'building',
    'check_files',
    'check_scope',
    'errors_in_one_line',
    'ids_checked',
    'merge_options',
    'tell_of_misspelt_keys',
]
