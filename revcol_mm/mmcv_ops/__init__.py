"""MMCV's compiled ops on torch and torchvision, for an MMCV that has none, such as ``mmcv-lite``.

The Python side of MMCV's ops (``mmcv/ops/*.py``) asks a module ``mmcv._ext`` for what is compiled. Where that
module is missing, :mod:`revcol_mm.supplied_modules` lets Python find :mod:`revcol_mm.mmcv_ops.ext` under its
name. Nothing of MMCV is changed, and an MMCV with compiled ops keeps them.
"""

import re
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

EXT = 'mmcv._ext'


def sort_ops() -> tuple[list[str], list[str]] | None:
    """Ops that MMCV would have compiled: those that are supplied here, and those that are missing.

    None if MMCV's own are in use. Imports ``mmcv._ext``.
    """
    supplied = getattr(import_module(EXT), 'SUPPLIED', None)
    if supplied is None:
        return None
    wanted = set()
    for path in Path(find_spec('mmcv').origin).with_name('ops').glob('*.py'):
        if path.stem != 'info':  # asks for no op
            wanted.update(re.findall(r'\bext_module\.(\w+)', path.read_text(encoding='utf-8')))
    parts = [wanted & {*supplied}, wanted - {*supplied}]
    return tuple(sorted({re.sub('_(forward|backward).*', '', name) for name in part}) for part in parts)
