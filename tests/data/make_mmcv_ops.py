"""Write mmcv_ops.pt: outputs and gradients of MMCV's compiled ops on the CPU, for ``test_mmcv_ops.py``.

    python -m tests.data.make_mmcv_ops

needs an MMCV with compiled ops. The test cases are defined here. Their names are also the seeds of their
inputs, which come from NumPy's legacy generator because it gives the same numbers on every machine.
"""

import sys
import zlib
from importlib import import_module
from pathlib import Path
from typing import Any, Callable, NamedTuple

import mmcv
import numpy as np
import torch
from torch.func import functional_call

import revcol_mm  # noqa: F401  before mmcv.ops, because it supplies missing ops

OPS = import_module('mmcv.ops')
FILE = Path(__file__).with_name('mmcv_ops.pt')


class Uniform(NamedTuple):
    """Shape and range of a random input."""

    shape: tuple[int, ...]
    low: float
    high: float


class Case(NamedTuple):
    """A call of an op or of a module.

    Args:
        op: Function of a namespace with MMCV's ops and of the inputs by name that calls an op; or function of
            the namespace that builds a module, whose parameters are additional inputs.
        inputs: For each input a shape (values from -1 to 1), a :class:`Uniform`, or values without gradient.
        is_module: Whether ``op`` builds a module.
    """

    op: Callable
    inputs: dict[str, Any]
    is_module: bool = False


def _random(name):
    return np.random.RandomState(zlib.crc32(name.encode()))


def draw(name, case, dtype=torch.float64, device='cpu', values=torch.float64):
    """Draw the inputs of a case, rounded to the dtype ``values`` and converted to ``dtype``."""
    specs = dict(case.inputs)
    if case.is_module:
        specs.update({key: tuple(param.shape) for key, param in case.op(OPS).named_parameters()})
    inputs, random = {}, _random(name)
    for key, spec in specs.items():
        if is_random := isinstance(spec, tuple):
            shape, *limits = spec if isinstance(spec, Uniform) else (spec, -1, 1)
            spec = random.uniform(*limits, shape)
        tensor = torch.from_numpy(np.array(spec))
        if tensor.is_floating_point():
            tensor = tensor.to(values).to(dtype)
        inputs[key] = tensor.to(device).requires_grad_(is_random)
    return inputs


def call(case, inputs, ops=OPS):
    if not case.is_module:
        return case.op(ops, **inputs)
    module = case.op(ops).to(next(iter(inputs.values())))
    parameters = {key: inputs.pop(key) for key in dict(module.named_parameters())}
    return functional_call(module, parameters, kwargs=inputs)


def compute(name, case, dtype=torch.float64, device='cpu', values=torch.float64, ops=OPS, change=lambda x: x):
    """Apply ``change`` to a case's inputs, and return output and gradients for a random output gradient."""
    inputs = {key: change(tensor) for key, tensor in draw(name, case, dtype, device, values).items()}
    leaves = {key: tensor for key, tensor in inputs.items() if tensor.requires_grad}
    output = call(case, inputs, ops)
    results = dict(output=output.detach())
    grad_output = torch.from_numpy(_random(f'{name} gradient').uniform(-1, 1, output.shape))
    if output.requires_grad:
        grads = torch.autograd.grad(output, leaves.values(), grad_output.to(values).to(output))
    else:  # a reference implementation, all of whose samples are outside the image
        grads = map(torch.zeros_like, leaves.values())
    results.update({f'gradient of {key}': grad for key, grad in zip(leaves, grads)})
    return results


# RoIs inside, across the border, far outside, and without area; the second of three images has none.
FEATURES = (3, 2, 7, 5)
ROIS = [
    [0, 1, 2.5, 8, 11.5],
    [2, -4.5, 3, 6, 20],
    [0, 3.5, -30, 30, 40.5],
    [2, 60, 50, 75, 71],
    [0, 5, 4, 5, 4],
    [2, 0.5, 6, 9.5, 6.5],
]
WITHIN = [[0, 4, 4, 7, 9], [2, 4.5, 5, 6.5, 9]]


def _roi_align(*options, rois=ROIS):
    def align(ops, features, rois):
        return ops.roi_align(features, rois, (3, 2), 0.5, *options)

    return Case(align, dict(features=FEATURES, rois=rois))


def _deform_conv(
    modulated=False,
    stride=1,
    padding=0,
    dilation=1,
    groups=1,
    deform_groups=1,
    kernel=(3, 3),
    size=(5, 4),
    bias=False,
):
    stride, padding, dilation = (np.broadcast_to(each, 2) for each in (stride, padding, dilation))
    out = (np.array(size) + 2 * padding - dilation * (np.array(kernel) - 1) - 1) // stride + 1
    taps = deform_groups * kernel[0] * kernel[1]
    offset = Uniform((2, 2 * taps, *out), -3, 3)  # reaches outside the image
    inputs = dict(x=(2, 4, *size), offset=offset, weight=(2, 4 // groups, *kernel))
    geometry = [tuple(each.tolist()) for each in (stride, padding, dilation)] + [groups, deform_groups]
    if modulated:
        inputs.update(mask=(2, taps, *out), **(dict(bias=(2,)) if bias else {}))

    def convolve(ops, x, offset, weight, mask=None, bias=None):
        if modulated:
            return ops.modulated_deform_conv2d(x, offset, mask, weight, bias, *geometry)
        return ops.deform_conv2d(x, offset, weight, *geometry)

    return Case(convolve, inputs)


def _psa_mask(kind, *size):
    return Case(lambda ops, x: ops.PSAMask(kind, size)(x), dict(x=(2, size[0] * size[1], 4, 3)))


def _module(make, **inputs):
    return Case(make, inputs, is_module=True)


def _focal_loss(kind, reduction, target, **weight):
    def loss(ops, x, target, weight=None):
        return getattr(ops, f'{kind}_focal_loss')(x, target, 1.5, 0.3, weight, reduction)

    return Case(loss, dict(x=Uniform((5, 3), -3, 3), target=target, **weight))


def _carafe(kernel, groups, scale):
    def reassemble(ops, features, masks):
        return ops.carafe(features, masks, kernel, groups, scale)

    return Case(reassemble, dict(features=(2, 4, 3, 4), masks=(2, groups * kernel**2, 3 * scale, 4 * scale)))


def _deform_roi_pool(sampling_ratio, **inputs):
    def pool(ops, features, rois, offset=None):
        return ops.deform_roi_pool(features, rois, offset, (3, 2), 0.5, sampling_ratio, 0.3)

    return Case(pool, dict(features=FEATURES, rois=ROIS, **inputs))


def _attend(ops, value, locations, weights, spatial_shapes, level_start_index):
    attend = ops.multi_scale_deform_attn.MultiScaleDeformableAttnFunction.apply
    return attend(value, spatial_shapes, level_start_index, locations, weights, 64)


LEVELS = dict(spatial_shapes=[[4, 3], [2, 2]], level_start_index=[0, 12])

COMPILED_ON_CPU = {
    'roi_align by average': _roi_align(0, 'avg', True),
    'roi_align by average of 2, not aligned': _roi_align(2, 'avg', False),
    'roi_align by maximum': _roi_align(0, 'max', True),
    'roi_align by maximum of 2, not aligned': _roi_align(2, 'max', False),
    'roi_align without RoIs': _roi_align(0, 'avg', True, rois=np.zeros((0, 5))),
    'roi_align by maximum without RoIs': _roi_align(0, 'max', True, rois=np.zeros((0, 5))),
    'deform_conv2d': _deform_conv(),
    'deform_conv2d with stride and padding': _deform_conv(stride=(2, 1), padding=(1, 2)),
    'deform_conv2d with dilation': _deform_conv(dilation=(1, 2), padding=2, kernel=(2, 3)),
    'deform_conv2d in groups': _deform_conv(padding=1, groups=2, deform_groups=2),
    'modulated_deform_conv2d': _deform_conv(modulated=True),
    'modulated_deform_conv2d with bias': _deform_conv(True, padding=1, stride=2, bias=True),
    'modulated_deform_conv2d with dilation': _deform_conv(True, dilation=2, padding=(1, 2), kernel=(3, 2)),
    'modulated_deform_conv2d in groups': _deform_conv(True, padding=1, groups=2, deform_groups=2, bias=True),
    'DeformConv2dPack': _module(lambda ops: ops.DeformConv2dPack(4, 2, 3, padding=1), x=(2, 4, 5, 4)),
    'DeformConv2d of a map below its kernel': _module(
        lambda ops: ops.DeformConv2d(2, 2, 3, padding=1), x=(1, 2, 2, 3), offset=(1, 18, 2, 3)
    ),
    'ModulatedDeformConv2dPack': _module(
        lambda ops: ops.ModulatedDeformConv2dPack(4, 2, 3, padding=1, deform_groups=2), x=(2, 4, 5, 4)
    ),
    'SAConv2d': _module(
        lambda ops: ops.SAConv2d(3, 2, 3, padding=1, bias=False, use_deform=True), x=(2, 3, 6, 5)
    ),
    'PSAMask that collects': _psa_mask('collect', 3, 5),
    'PSAMask that distributes': _psa_mask('distribute', 5, 3),
    'MultiScaleDeformableAttention': _module(
        lambda ops: ops.MultiScaleDeformableAttention(8, 2, 2, 2, dropout=0),
        query=(3, 2, 8),
        value=(16, 2, 8),
        reference_points=np.linspace(0.05, 0.95, 24).reshape(2, 3, 2, 2),
        **LEVELS,
    ),
    'CrissCrossAttention': _module(lambda ops: ops.CrissCrossAttention(8), x=(2, 8, 3, 4)),
    'CornerPool': _module(lambda ops: ops.CornerPool('left'), x=(2, 2, 4, 5)),
    'point_sample': Case(
        lambda ops, x, points: ops.point_sample(x, points), dict(x=(2, 3, 4, 5), points=(2, 6, 2))
    ),
}

COMPILED_ON_CUDA_ONLY = {
    'roi_pool': Case(
        lambda ops, features, rois: ops.roi_pool(features, rois, (3, 2), 0.5),
        dict(features=FEATURES, rois=ROIS),
    ),
    'deform_roi_pool': _deform_roi_pool(0, offset=(6, 2, 3, 2)),
    'deform_roi_pool of 2': _deform_roi_pool(2, offset=(6, 2, 3, 2)),
    'deform_roi_pool without offsets': _deform_roi_pool(0),
    'DeformRoIPoolPack': _module(
        lambda ops: ops.DeformRoIPoolPack((3, 2), 2, 5, 0.5), input=FEATURES, rois=WITHIN
    ),
    'ModulatedDeformRoIPoolPack': _module(
        lambda ops: ops.ModulatedDeformRoIPoolPack((3, 2), 2, 5, 0.5), input=FEATURES, rois=WITHIN
    ),
    'sigmoid_focal_loss': _focal_loss('sigmoid', 'none', [0, 2, 3, 1, 0]),  # 3 is the background
    'sigmoid_focal_loss, mean': _focal_loss('sigmoid', 'mean', [0, 2, 3, 1, 0]),
    'sigmoid_focal_loss of weights': _focal_loss('sigmoid', 'sum', [0, 2, 1, 1, 0], weight=[0.5, 1.5, 2.5]),
    'softmax_focal_loss, mean': _focal_loss('softmax', 'mean', [0, 2, 1, 1, 0]),
    'softmax_focal_loss of weights': _focal_loss('softmax', 'sum', [0, 2, 1, 1, 0], weight=[0.5, 1.5, 2.5]),
    'carafe': _carafe(3, 1, 2),
    'carafe in groups': _carafe(5, 2, 3),
    'CARAFEPack': _module(
        lambda ops: ops.CARAFEPack(4, 2, up_kernel=3, compressed_channels=3), x=(2, 4, 3, 4)
    ),
    'MultiScaleDeformableAttnFunction': Case(
        _attend,
        dict(
            value=(2, 16, 2, 3),
            locations=Uniform((2, 5, 2, 2, 3, 2), -0.25, 1.25),  # also outside the image
            weights=(2, 5, 2, 2, 3),
            **LEVELS,
        ),
    ),
}


def _boxes(number, side, on_grid=False, equal_scores=False):
    """Return random boxes, scores and labels. On a grid, many boxes are equal and many have no area."""
    random = _random(f'boxes {number} {side}')
    corners = random.uniform(0, 20, (number, 2))
    boxes = np.concatenate([corners, corners + random.uniform(-0.1, 1, (number, 2)) * side], 1)
    scores = random.permutation(number) / 64
    boxes, scores = boxes.round() if on_grid else boxes, scores.round(1) if equal_scores else scores
    return tuple(map(torch.from_numpy, (boxes, scores, random.randint(0, 3, number))))


BOXES = {
    'scattered': _boxes(30, 12),
    'on a grid': _boxes(40, 5, on_grid=True),
    'of equal scores': _boxes(40, 5, on_grid=True, equal_scores=True),
    'one': _boxes(1, 9),
    'none': _boxes(0, 9),
    # The IoU of each box with the first is 0.3, 0.6 and 0.9, except for rounding.
    'at thresholds': (
        torch.tensor([[0.0, 0, 10, 1], [0, 0, 3, 1], [4, 0, 10, 1], [0, 0, 9, 1]], dtype=torch.float64),
        torch.tensor([0.9, 0.8, 0.7, 0.6], dtype=torch.float64),
        torch.tensor([0, 0, 0, 0]),
    ),
}


def _batched(**config):
    return lambda ops, boxes, scores, labels: ops.batched_nms(boxes, scores, labels, config or None)


def _nms(**options):
    return lambda ops, boxes, scores, labels: ops.nms(boxes, scores, **options)


def _soft_nms(**options):
    return lambda ops, boxes, scores, labels: ops.soft_nms(boxes, scores, **options)


def _overlaps(**options):
    def overlaps(ops, boxes, scores, labels):
        others = boxes if options.get('aligned') else boxes[: len(boxes) // 3]
        return (ops.bbox_overlaps(boxes.flip(0), others, **options),)

    return overlaps


SUPPRESSIONS = {
    'nms 0.3': _nms(iou_threshold=0.3),
    'nms 0.6': _nms(iou_threshold=0.6),
    'nms with an offset': _nms(iou_threshold=0.5, offset=1),
    'nms of scores above 0.4, at most 5': _nms(iou_threshold=0.5, score_threshold=0.4, max_num=5),
    'batched_nms': _batched(type='nms', iou_threshold=0.4),
    'batched_nms of classes together': _batched(type='nms', iou_threshold=0.4, class_agnostic=True),
    'batched_nms of classes in turn, at most 9': _batched(iou_threshold=0.4, split_thr=1, max_num=9),
    'batched soft_nms': _batched(type='soft_nms', iou_threshold=0.4, min_score=0.05),
    'batched_nms that keeps all': _batched(),
    'soft_nms': _soft_nms(),
    'soft_nms naive': _soft_nms(method='naive', iou_threshold=0.6, min_score=0.2),
    'soft_nms linear': _soft_nms(method='linear', iou_threshold=0.6, min_score=0.2, offset=1),
    'soft_nms gaussian': _soft_nms(method='gaussian', sigma=0.3, min_score=0.1),
    'nms_match': lambda ops, boxes, scores, labels: ops.nms_match(
        torch.cat([boxes, scores[:, None]], 1), 0.6
    ),
    'bbox_overlaps': _overlaps(),
    'bbox_overlaps of pairs': _overlaps(aligned=True, offset=1),
    'bbox_overlaps over the foreground': _overlaps(mode='iof', offset=1),
}


def suppress(name, dtype=torch.float32, device='cpu', values=torch.float32):
    """Return the results of a box op for each set of boxes, rounded to the dtype ``values``."""
    results = {}
    for key, (boxes, scores, labels) in BOXES.items():
        if key == 'none' and name.startswith('batched'):
            continue  # MMCV needs the largest coordinate
        if key == 'of equal scores' and name.startswith(('nms', 'batched_nms')):
            continue  # compiled ops sort equal scores in any order
        boxes, scores = (tensor.to(values).to(device, dtype) for tensor in (boxes, scores))
        results[key] = list(SUPPRESSIONS[name](OPS, boxes, scores, labels.to(device)))
    return results


def main():
    if not getattr(mmcv._ext, '__file__', '').endswith(('.so', '.pyd')):
        sys.exit('error: this MMCV has no compiled ops; run it with one that has: see docs/environment.md')
    torch.save(
        dict(
            made_by=f'mmcv {mmcv.__version__} compiled, torch {torch.__version__}',
            cases={name: compute(name, case) for name, case in COMPILED_ON_CPU.items()},
            suppressed={name: suppress(name) for name in SUPPRESSIONS},
        ),
        FILE,
    )


if __name__ == '__main__':
    main()
