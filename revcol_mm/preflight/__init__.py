"""What is checked before a run: options, files, data and model, so that nothing fails hours into it."""

from .channels import check_normalisation, revcol_channels
from .coco_ids import ids_checked
from .errors import PreflightError, building, errors_in_one_line
from .files import check_files, check_scope, files_with_code, leaves, reads_code
from .hook import IGNORE_INDEX, PreflightHook
from .options import merge_options, tell_of_misspelt_keys
from .pipelines import ignore_index, image_loader, innermost_datasets, reads_images
from .sliding_windows import check_sliding_windows

__all__ = [
    'IGNORE_INDEX',
    'PreflightError',
    'PreflightHook',
    'building',
    'check_files',
    'check_normalisation',
    'check_scope',
    'check_sliding_windows',
    'errors_in_one_line',
    'files_with_code',
    'ids_checked',
    'ignore_index',
    'image_loader',
    'innermost_datasets',
    'leaves',
    'merge_options',
    'reads_code',
    'reads_images',
    'revcol_channels',
    'tell_of_misspelt_keys',
]
