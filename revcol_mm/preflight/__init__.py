"""What is checked before a run: options, files, data and model, so that nothing fails hours into it."""

from .channels import check_normalisation, revcol_channels
from .coco import CocoFile, annotation_files
from .data import build_dataset
from .doctor import check_data
from .errors import PreflightError, building, errors_in_one_line
from .files import check_files, check_scope, files_with_code, leaves, reads_code
from .findings import Finding, Findings
from .hook import PreflightHook
from .options import merge_options, tell_of_misspelt_keys
from .pipelines import ignore_index, image_loader, innermost_datasets, reads_images
from .samples import image_size
from .sliding_windows import check_sliding_windows

__all__ = [
    'CocoFile',
    'Finding',
    'Findings',
    'PreflightError',
    'PreflightHook',
    'annotation_files',
    'build_dataset',
    'building',
    'check_data',
    'check_files',
    'check_normalisation',
    'check_scope',
    'check_sliding_windows',
    'errors_in_one_line',
    'files_with_code',
    'ignore_index',
    'image_loader',
    'image_size',
    'innermost_datasets',
    'leaves',
    'merge_options',
    'reads_code',
    'reads_images',
    'revcol_channels',
    'tell_of_misspelt_keys',
]
