"""Make MMPretrain, and MMDetection, which imports it, work beside transformers 5."""

from contextlib import suppress
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec


def leave_out_multimodal_models() -> None:
    """Disable BLIP and other multimodal models of MMPretrain if transformers 5 is installed.

    They import functions that transformers 5 has removed. MMPretrain 1.2.0 imports these models whenever
    transformers is installed, so that ``import mmpretrain.models`` and ``import mmdet.models`` fail.
    """
    try:
        is_newer = int(version('transformers').split('.')[0]) >= 5
    except PackageNotFoundError:
        return
    if is_newer and find_spec('mmpretrain'):
        with suppress(Exception):  # a broken MMPretrain is reported where it is needed, by check_env
            import_module('mmpretrain.utils.dependency').WITH_MULTIMODAL = False
