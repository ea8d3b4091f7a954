"""Replacement for ``mmcv._ext``: the functions that MMCV's ops call, with their names and arguments.

Like the compiled functions they write to output tensors that MMCV passes. Backward functions run the op again
with autograd, so that only its inputs are stored between forward and backward. Half precision is computed in
float32 and rounded once, at the end.
"""

from inspect import isfunction
from typing import Any, Callable

import torch

try:
    import torchvision.ops
except (ImportError, RuntimeError) as error:
    raise ImportError(
        f"MMCV's ops on torchvision need a torchvision that fits torch {torch.__version__} ({error}); run: "
        'python -m revcol_mm.check_env'
    ) from error

from revcol_mm.mmcv_ops import boxes, deformable, focal_loss, neighborhoods, regions, sync_bn

SUPPLIED = {
    name: function
    for module in (boxes, deformable, focal_loss, neighborhoods, regions, sync_bn)
    for name, function in vars(module).items()
    if isfunction(function) and function.__module__ == module.__name__ and not name.startswith('_')
}
globals().update(SUPPLIED)


def get_compiler_version() -> str:
    """Return a text for the line 'MMCV Compiler' of ``mmcv.collect_env``."""
    return 'none'


def get_compiling_cuda_version() -> str:
    """Return a text for the line 'MMCV CUDA Compiler' of ``mmcv.collect_env``."""
    return f'none, ops are on torchvision {torchvision.__version__}'


def __getattr__(name: str) -> Callable:
    """Return a function that raises when it is called, so that ``mmcv.ops`` can import ops missing here."""
    if name.startswith('__'):
        raise AttributeError(name)

    def missing(*args: Any, **kwargs: Any) -> None:
        raise NotImplementedError(
            f'mmcv._ext.{name} is not among the ops that revcol_mm supplies on torchvision. Install an mmcv '
            'with compiled ops: see docs/environment.md'
        )

    return missing
