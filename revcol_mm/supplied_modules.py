"""Modules that OpenMMLab imports and pip may not have installed, for Python to find under their names.

- ``mmcv._ext``, MMCV's compiled ops, which ``mmcv-lite`` lacks: :mod:`revcol_mm.mmcv_ops`.
- ``panopticapi``, which MMDetection's panoptic data sets and metric need, and which is on no package index:
  :mod:`revcol_mm.panopticapi`.

Nothing is replaced: Python asks this finder last, so that a module that is installed is found first.
"""

import sys
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).parent
FILES = {
    'mmcv._ext': PACKAGE / 'mmcv_ops/ext.py',
    'panopticapi': PACKAGE / 'panopticapi/__init__.py',
}


class SuppliedModuleFinder:
    """Finds the modules of :data:`FILES`."""

    @staticmethod
    def find_spec(name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name in FILES:
            file = FILES[name]
            folders = [str(file.parent)] if file.name == '__init__.py' else None
            return spec_from_file_location(name, file, submodule_search_locations=folders)


def supply_modules() -> None:
    """Let Python find the modules of :data:`FILES` where they are not installed. Imports none of them."""
    if SuppliedModuleFinder not in sys.meta_path:
        sys.meta_path.append(SuppliedModuleFinder)
