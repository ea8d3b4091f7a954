"""MMPretrain, and MMDetection with it, beside transformers 5."""

from contextlib import suppress
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec


def leave_out_multimodal_models() -> None:
    """Have MMPretrain imported without BLIP and other multimodal models if transformers 5 is installed.

    They ask transformers for functions that it no longer has. MMPretrain 1.2.0 imports them wherever
    transformers is installed, and fails as a whole; so does MMDetection, which imports MMPretrain.
    """
    try:
        is_newer = int(version('transformers').split('.')[0]) >= 5
    except PackageNotFoundError:
        return
    if is_newer and find_spec('mmpretrain'):
        with suppress(Exception):  # of a set-up that is broken; who needs MMPretrain will be told
            import_module('mmpretrain.utils.dependency').WITH_MULTIMODAL = False
