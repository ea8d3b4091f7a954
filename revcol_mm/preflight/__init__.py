"""What is checked before a run: options, files, data and model, so that nothing fails hours into it."""

from .coco_ids import ids_checked
from .errors import PreflightError, building, errors_in_one_line
from .files import check_files, check_scope, files_with_code, leaves, reads_code
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
    'files_with_code',
    'ids_checked',
    'leaves',
    'merge_options',
    'reads_code',
    'tell_of_misspelt_keys',
]
