"""MMCV's compiled ops on torch and torchvision, for an MMCV without compiled ops, such as ``mmcv-lite``.

The Python part of MMCV's ops (``mmcv/ops/*.py``) loads its compiled functions from the module ``mmcv._ext``.
If it is missing, :mod:`revcol_mm.supplied_modules` makes Python load :mod:`revcol_mm.mmcv_ops.ext` instead.
MMCV itself is not modified, and an MMCV with compiled ops continues to use them.
"""

import re
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path


def sort_ops() -> tuple[list[str], list[str]] | None:
    """Return the names of MMCV's compiled ops that this package supplies, and of those that it does not.

    Returns None if MMCV's own compiled ops are in use. Imports ``mmcv._ext``.
    """
    supplied = getattr(import_module('mmcv._ext'), 'SUPPLIED', None)
    if supplied is None:
        return None
    used = set()
    for path in Path(find_spec('mmcv').origin).with_name('ops').glob('*.py'):
        if path.stem != 'info':  # It only asks for compiler versions.
            used.update(re.findall(r'\bext_module\.(\w+)', path.read_text(encoding='utf-8')))
    parts = [used & {*supplied}, used - {*supplied}]
    return tuple(sorted({re.sub('_(forward|backward).*', '', name) for name in part}) for part in parts)
