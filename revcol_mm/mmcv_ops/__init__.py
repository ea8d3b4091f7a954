"""MMCV's compiled ops on torch and torchvision, for an MMCV that has none, such as ``mmcv-lite``.

The Python side of MMCV's ops (``mmcv/ops/*.py``) asks a module ``mmcv._ext`` for what is compiled. Where that module is
missing, :func:`supply_ops` lets Python find :mod:`revcol_mm.mmcv_ops.ext` under its name. Nothing of MMCV is changed,
and an MMCV with compiled ops keeps them.
"""

import sys
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path
from typing import Any

EXT = 'mmcv._ext'


class _OpsFinder:
    """Finds ``mmcv._ext``. It is the last to be asked, so that a compiled module is found first."""

    @staticmethod
    def find_spec(name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name == EXT:
            return spec_from_file_location(name, Path(__file__).with_name('ext.py'))


def supply_ops() -> None:
    """Make ``import mmcv.ops`` work where MMCV has no compiled ops. Imports nothing by itself."""
    if _OpsFinder not in sys.meta_path:
        sys.meta_path.append(_OpsFinder)
