"""Supply modules that OpenMMLab imports, and that may not be installed.

- ``mmcv._ext``, MMCV's compiled ops, which ``mmcv-lite`` lacks: from :mod:`revcol_mm.mmcv_ops`.
- ``panopticapi``, which MMDetection's panoptic data sets and metric need, and which is not on PyPI: from
  :mod:`revcol_mm.panopticapi`.

Installed modules are not replaced, because Python asks this finder last.
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
    """Import finder for the modules in :data:`FILES`."""

    @staticmethod
    def find_spec(name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name in FILES:
            file = FILES[name]
            folders = [str(file.parent)] if file.name == '__init__.py' else None
            return spec_from_file_location(name, file, submodule_search_locations=folders)


def supply_modules() -> None:
    """Add the finder to Python's import system; imports none of the modules."""
    if SuppliedModuleFinder not in sys.meta_path:
        sys.meta_path.append(SuppliedModuleFinder)
