"""MMCV's ops on torchvision against MMCV's compiled ones, by MMCV's public interface.

What the compiled ops compute is in ``data/mmcv_ops.pt``. Where MMCV has compiled ops, the tests are of these:
what is stored, and what the slow loops of ``test_mmcv_ops_references.py`` compute, holds of both.
"""

from importlib import import_module

import pytest
import torch
from torch.utils._pytree import tree_map

from .data.make_mmcv_ops import (
    COMPILED_ON_CPU,
    COMPILED_ON_CUDA_ONLY,
    FILE,
    OPS,
    SUPPRESSIONS,
    call,
    compute,
    draw,
    suppress,
)
from .subprocesses import run

CASES = COMPILED_ON_CPU | COMPILED_ON_CUDA_ONLY
# Modules of torch's own ops, which are the same with any MMCV, are left out where it comes to types.
TORCH = {'MultiScaleDeformableAttention', 'CrissCrossAttention', 'CornerPool', 'point_sample'}
MODULES = [name for name, case in CASES.items() if case.is_module and name not in TORCH]
CALLS = [name for name, case in CASES.items() if not case.is_module and name not in TORCH]
HALVES = [torch.float16, torch.bfloat16]
supplied = pytest.mark.skipif(
    not hasattr(import_module('mmcv._ext'), 'SUPPLIED'),
    reason='this MMCV has compiled ops, some of them for CUDA only',
)


def of(names):
    """Cases as parameters: what is compiled for CUDA only is tested where the ops are supplied."""
    return [pytest.param(name, marks=supplied if name in COMPILED_ON_CUDA_ONLY else ()) for name in names]


def assert_near(results, expected, rtol, atol):
    """Compare tensors by name, as those that are expected have their types."""
    results = {key: tensor.to(expected[key]) for key, tensor in results.items()}
    torch.testing.assert_close(results, expected, rtol=rtol, atol=atol, equal_nan=True)


@pytest.fixture(scope='module')
def compiled():
    """Results of the compiled ops."""
    return torch.load(FILE, weights_only=True)


@pytest.mark.parametrize('name', COMPILED_ON_CPU)
def test_outputs_and_gradients_are_those_of_the_compiled_op(name, compiled, device):
    assert_near(compute(name, CASES[name], device=device), compiled['cases'][name], 1e-12, 1e-12)


@pytest.mark.parametrize('name', SUPPRESSIONS)
def test_boxes_are_suppressed_as_by_the_compiled_op(name, compiled, device):
    results = tree_map(torch.Tensor.cpu, suppress(name, device=device))
    torch.testing.assert_close(results, compiled['suppressed'][name], equal_nan=True)


@supplied  # the compiled ones take float32 alone
@pytest.mark.parametrize('dtype', [torch.float64, *HALVES])
@pytest.mark.parametrize('name', [name for name in SUPPRESSIONS if not name.startswith('batched')])
def test_boxes_of_any_type_are_suppressed_alike(name, dtype, device):
    """For batches MMCV itself moves boxes, which in half precision is another matter."""

    def as_dtype(tensor):
        return tensor.to(dtype) if tensor.is_floating_point() else tensor

    values = dtype if dtype in HALVES else torch.float32
    results, expected = (suppress(name, kind, device, values) for kind in (dtype, torch.float32))
    torch.testing.assert_close(results, tree_map(as_dtype, expected), equal_nan=True)


@supplied  # the compiled ones round at every step
@pytest.mark.parametrize('dtype', [torch.float32, *HALVES])
@pytest.mark.parametrize('name', CALLS)
def test_half_precision_is_rounded_once(name, dtype, device):
    """With focal losses MMCV itself rounds before and after the op."""
    results, expected = (
        compute(name, CASES[name], kind, device, values=dtype) for kind in (dtype, torch.float64)
    )
    assert all(tensor.dtype == dtype for tensor in results.values())
    unit = torch.finfo(dtype).eps / 2
    assert_near(results, expected, 20 * unit if 'focal' in name else 1.01 * unit, 1e-5)


@supplied  # half precision is compiled for CUDA only
@pytest.mark.parametrize('dtype, autocast', [(dtype, way) for dtype in HALVES for way in (False, True)])
@pytest.mark.parametrize('name', MODULES)
def test_modules_run_in_half_precision(name, dtype, autocast, device):
    """Offsets are rounded, which can move a sample to the next pixel: gradients are another matter."""
    if autocast and not torch.amp.is_autocast_available(device.type):
        pytest.skip(f'no autocast on {device}')
    case = CASES[name]
    with torch.autocast(device.type, dtype, enabled=autocast):
        results = compute(name, case, torch.float32 if autocast else dtype, device, values=dtype)
    expected = compute(name, case, device=device, values=dtype)
    for tensor in results.values():
        assert tensor.isfinite().all()
        assert tensor.dtype in (dtype, torch.float32) if autocast else tensor.dtype == dtype
    bound = 30 * torch.finfo(dtype).eps
    torch.testing.assert_close(results['output'].double(), expected['output'], rtol=bound, atol=bound)


@supplied  # under autocast detectors give RoIs in float32
@pytest.mark.parametrize('dtype', HALVES)
@pytest.mark.parametrize('name', [name for name in CALLS if 'rois' in CASES[name].inputs])
def test_features_in_half_precision_take_rois_in_float32(name, dtype, device):
    inputs = draw(name, CASES[name], dtype, device)
    expected = call(CASES[name], dict(inputs))
    inputs['rois'] = inputs['rois'].float()
    output = call(CASES[name], inputs)
    assert output.dtype == dtype
    torch.testing.assert_close(output, expected, rtol=0, atol=0)


# At borders MMCV's deformable RoI pooling has a gradient of offsets that is not that of its output.
@pytest.mark.parametrize('name', of(name for name in CASES if not name.startswith('deform_roi_pool')))
def test_gradients_are_those_of_small_differences(name, device):
    inputs = draw(name, CASES[name], device=device)
    leaves = {key: tensor for key, tensor in inputs.items() if tensor.requires_grad}

    def op(*tensors):
        return call(CASES[name], inputs | dict(zip(leaves, tensors)))

    assert torch.autograd.gradcheck(op, tuple(leaves.values()), fast_mode=True, nondet_tol=1e-9)


@supplied  # the compiled ones take contiguous tensors alone
@pytest.mark.parametrize('name', CALLS)
def test_any_layout_of_memory_gives_the_same(name, device):
    def transpose_memory(tensor):
        return tensor.transpose(0, -1).contiguous().transpose(0, -1) if tensor.ndim > 1 else tensor

    results = compute(name, CASES[name], device=device, change=transpose_memory)
    assert_near(results, compute(name, CASES[name], device=device), 1e-12, 1e-12)


@pytest.mark.parametrize('name', ['deform_conv2d', 'modulated_deform_conv2d with bias'])
def test_a_kept_graph_gives_each_pass_its_gradients(name, device):
    inputs = draw(name, CASES[name], device=device)
    output = call(CASES[name], inputs)
    once, twice = (
        torch.autograd.grad(output, tuple(inputs.values()), torch.full_like(output, scale), retain_graph=True)
        for scale in (1, 2)
    )
    torch.testing.assert_close([gradient * 2 for gradient in once], list(twice))


@pytest.mark.parametrize('name', ['deform_conv2d', 'deform_conv2d in groups', 'modulated_deform_conv2d'])
@pytest.mark.parametrize('alone', ['x', 'offset', 'weight'])
def test_an_input_whose_gradient_alone_is_asked_gets_the_same(name, alone, device):
    inputs = draw(name, CASES[name], device=device)
    others = {key: tensor.detach() for key, tensor in inputs.items() if key != alone}
    output = call(CASES[name], inputs | others)
    (gradient,) = torch.autograd.grad(output.sum(), inputs[alone])
    expected = torch.autograd.grad(call(CASES[name], inputs).sum(), inputs[alone])[0]
    torch.testing.assert_close(gradient, expected)


@supplied
@pytest.mark.parametrize(
    'name, inputs',
    [
        ('nms_rotated', [(2, 5), (2,), 0.5]),
        ('box_iou_rotated', [(2, 5), (3, 5)]),
        ('roi_align_rotated', [(1, 2, 4, 4), (1, 6), 2, 1.0]),
        ('points_in_polygons', [(3, 2), (2, 8)]),
    ],
)
def test_an_op_that_is_not_here_says_so(name, inputs):
    inputs = [torch.rand(value) if isinstance(value, tuple) else value for value in inputs]
    with pytest.raises(NotImplementedError, match=f'{name}.*compiled ops'):
        getattr(OPS, name)(*inputs)


WITH_COMPILED_OPS = """
import sys
import mmcv
import revcol_mm
mmcv.__path__.insert(0, sys.argv[1])
import mmcv._ext
print(mmcv._ext.nms)
"""


def test_mmcv_keeps_ops_of_its_own(tmp_path):
    (tmp_path / '_ext.py').write_text('nms = "compiled"')
    said = run('-c', WITH_COMPILED_OPS, tmp_path)
    assert said.split() == ['compiled']


WITHOUT_TORCHVISION = """
import sys
import revcol_mm
assert not {'torchvision', 'mmcv', 'mmcv.ops'} & sys.modules.keys()
sys.modules['torchvision'] = None  # as if it was not installed
try:
    import mmcv.ops
except ImportError as error:
    print(error)
"""


@supplied
def test_torchvision_is_needed_by_the_ops_alone():
    assert 'run: python -m revcol_mm.check_env' in run('-c', WITHOUT_TORCHVISION)
