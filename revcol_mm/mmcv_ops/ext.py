"""What MMCV imports as ``mmcv._ext``: the functions that its ops call, with their names and arguments.

They write to the tensors that MMCV passes for outputs, as the compiled ones do. Gradients are autograd's: backward
runs an op once more, so that nothing but its inputs is stored between the passes. What comes in half precision is
computed in float32 and rounded once, at the end.
"""

from typing import Any, Callable

import torch

try:
    import torchvision.ops
except (ImportError, RuntimeError) as error:
    raise ImportError(
        f"MMCV's ops on torchvision need the torchvision that belongs to torch {torch.__version__} ({error}); "
        'run: python -m revcol_mm.check_env'
    ) from error

from revcol_mm.mmcv_ops.boxes import bbox_overlaps, nms, nms_match, softnms
from revcol_mm.mmcv_ops.deformable import (
    deform_conv_backward_input,
    deform_conv_backward_parameters,
    deform_conv_forward,
    modulated_deform_conv_backward,
    modulated_deform_conv_forward,
    ms_deform_attn_backward,
    ms_deform_attn_forward,
)
from revcol_mm.mmcv_ops.focal_loss import (
    sigmoid_focal_loss_backward,
    sigmoid_focal_loss_forward,
    softmax_focal_loss_backward,
    softmax_focal_loss_forward,
)
from revcol_mm.mmcv_ops.neighborhoods import (
    carafe_backward,
    carafe_forward,
    carafe_naive_backward,
    carafe_naive_forward,
    masked_col2im_forward,
    masked_im2col_forward,
    psamask_backward,
    psamask_forward,
)
from revcol_mm.mmcv_ops.regions import (
    deform_roi_pool_backward,
    deform_roi_pool_forward,
    roi_align_backward,
    roi_align_forward,
    roi_pool_backward,
    roi_pool_forward,
)
from revcol_mm.mmcv_ops.sync_bn import (
    sync_bn_backward_data,
    sync_bn_backward_param,
    sync_bn_forward_mean,
    sync_bn_forward_output,
    sync_bn_forward_var,
)

SUPPLIED = tuple(
    name for name, value in globals().items() if getattr(value, '__module__', '').startswith('revcol_mm.mmcv_ops')
)


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
            f'mmcv._ext.{name} is not among the ops that revcol_mm supplies on torchvision. It takes an mmcv with '
            'compiled ops: see docs/environment.md'
        )

    return missing
