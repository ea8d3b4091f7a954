"""What MMCV imports as ``mmcv._ext``: the functions that its ops call, with their names and arguments.

They write to the tensors that MMCV passes for outputs, as the compiled ones do. Gradients are autograd's:
backward runs an op once more, so that nothing but its inputs is stored between the passes. What comes in half
precision is computed in float32 and rounded once, at the end.
"""

from inspect import isfunction
from typing import Any, Callable

import torch

try:
    import torchvision.ops
except (ImportError, RuntimeError) as error:
    raise ImportError(
        f"MMCV's ops on torchvision need the one that is made for torch {torch.__version__} ({error}); run: "
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
    """Version of the C++ compiler, for ``mmcv.collect_env``."""
    return 'none'


def get_compiling_cuda_version() -> str:
    """Version of CUDA that ops were compiled with, likewise."""
    return f'none, ops are on torchvision {torchvision.__version__}'


def __getattr__(name: str) -> Callable:
    """Stand in for an op that is not here, so that ``mmcv.ops`` imports; to call it is an error."""
    if name.startswith('__'):
        raise AttributeError(name)

    def missing(*args: Any, **kwargs: Any) -> None:
        raise NotImplementedError(
            f'mmcv._ext.{name} is not among the ops that revcol_mm supplies on torchvision. It takes an mmcv '
            'with compiled ops: see docs/environment.md'
        )

    return missing
