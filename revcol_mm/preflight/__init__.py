"""What is checked before a run: options, files, data and model, so that nothing fails hours into it."""

from .coco import CocoFile, annotation_files
from .data import build_dataset
from .doctor import check_data
from .errors import PreflightError, building
from .files import check_files, check_scope
from .findings import Finding, Findings
from .hook import PreflightHook
from .options import merge_options
from .samples import IGNORE_INDEX, image_size

__all__ = [
    'IGNORE_INDEX',
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
    'check_scope',
    'image_size',
    'merge_options',
]
