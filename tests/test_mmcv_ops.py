"""MMCV's ops on torchvision against MMCV's compiled ops, through MMCV's public interface.

``data/mmcv_ops.pt`` has the results of the compiled ops. With an MMCV that has compiled ops, the tests run on
these, because stored results and references have to hold for both.
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
# MMCV implements these in Python. They are not tested with other dtypes.
PYTHON_ONLY = {'MultiScaleDeformableAttention', 'CrissCrossAttention', 'CornerPool', 'point_sample'}
MODULES = [name for name, case in CASES.items() if case.is_module and name not in PYTHON_ONLY]
CALLS = [name for name, case in CASES.items() if not case.is_module and name not in PYTHON_ONLY]
HALVES = [torch.float16, torch.bfloat16]
supplied = pytest.mark.skipif(
    not hasattr(import_module('mmcv._ext'), 'SUPPLIED'),
    reason='the installed MMCV has compiled ops',
)


def as_params(names):
    """Mark cases that MMCV compiles for CUDA only: they are skipped if MMCV has compiled ops."""
    return [pytest.param(name, marks=supplied if name in COMPILED_ON_CUDA_ONLY else ()) for name in names]


def assert_near(results, expected, rtol, atol):
    """Compare dicts of tensors, after conversion to the expected dtypes and devices."""
    results = {key: tensor.to(expected[key]) for key, tensor in results.items()}
    torch.testing.assert_close(results, expected, rtol=rtol, atol=atol, equal_nan=True)


@pytest.fixture(scope='module')
def compiled():
    return torch.load(FILE, weights_only=True)


@pytest.mark.parametrize('name', COMPILED_ON_CPU)
def test_outputs_and_gradients_equal_the_compiled_op(name, compiled, device):
    assert_near(compute(name, CASES[name], device=device), compiled['cases'][name], 1e-12, 1e-12)


@pytest.mark.parametrize('name', SUPPRESSIONS)
def test_box_ops_equal_the_compiled_op(name, compiled, device):
    results = tree_map(torch.Tensor.cpu, suppress(name, device=device))
    torch.testing.assert_close(results, compiled['suppressed'][name], equal_nan=True)


@supplied  # compiled ops take float32 only
@pytest.mark.parametrize('dtype', [torch.float64, *HALVES])
@pytest.mark.parametrize('name', [name for name in SUPPRESSIONS if not name.startswith('batched')])
def test_box_ops_give_the_same_result_in_any_dtype(name, dtype, device):
    """Without batched NMS, for which MMCV adds offsets to the boxes in their own precision."""

    def as_dtype(tensor):
        return tensor.to(dtype) if tensor.is_floating_point() else tensor

    values = dtype if dtype in HALVES else torch.float32
    results, expected = (suppress(name, kind, device, values) for kind in (dtype, torch.float32))
    torch.testing.assert_close(results, tree_map(as_dtype, expected), equal_nan=True)


@supplied  # compiled ops round at every step
@pytest.mark.parametrize('dtype', [torch.float32, *HALVES])
@pytest.mark.parametrize('name', CALLS)
def test_half_precision_is_rounded_once(name, dtype, device):
    """The bound is wider for focal losses, because MMCV's Python code rounds before and after the op."""
    results, expected = (
        compute(name, CASES[name], kind, device, values=dtype) for kind in (dtype, torch.float64)
    )
    assert all(tensor.dtype == dtype for tensor in results.values())
    unit = torch.finfo(dtype).eps / 2
    assert_near(results, expected, 20 * unit if 'focal' in name else 1.01 * unit, 1e-5)


@supplied  # compiled ops take half precision on CUDA only
@pytest.mark.parametrize('autocast', [False, True])
@pytest.mark.parametrize('dtype', HALVES)
@pytest.mark.parametrize('name', MODULES)
def test_modules_run_in_half_precision(name, dtype, autocast, device):
    """Gradients are not compared: rounding an offset can move a sample to the next pixel."""
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


@supplied  # under autocast detectors pass RoIs in float32
@pytest.mark.parametrize('dtype', HALVES)
@pytest.mark.parametrize('name', [name for name in CALLS if 'rois' in CASES[name].inputs])
def test_half_precision_features_accept_float32_rois(name, dtype, device):
    inputs = draw(name, CASES[name], dtype, device)
    expected = call(CASES[name], dict(inputs))
    inputs['rois'] = inputs['rois'].float()
    output = call(CASES[name], inputs)
    assert output.dtype == dtype
    torch.testing.assert_close(output, expected, rtol=0, atol=0)


# The gradient of offsets in MMCV's deformable RoI pooling is not exact at borders.
@pytest.mark.parametrize('name', as_params(name for name in CASES if not name.startswith('deform_roi_pool')))
def test_gradients_equal_numerical_ones(name, device):
    inputs = draw(name, CASES[name], device=device)
    leaves = {key: tensor for key, tensor in inputs.items() if tensor.requires_grad}

    def op(*tensors):
        return call(CASES[name], inputs | dict(zip(leaves, tensors)))

    assert torch.autograd.gradcheck(op, tuple(leaves.values()), fast_mode=True, nondet_tol=1e-9)


@supplied  # compiled ops take contiguous tensors only
@pytest.mark.parametrize('name', CALLS)
def test_memory_layout_does_not_change_results(name, device):
    def transpose_memory(tensor):
        return tensor.transpose(0, -1).contiguous().transpose(0, -1) if tensor.ndim > 1 else tensor

    results = compute(name, CASES[name], device=device, change=transpose_memory)
    assert_near(results, compute(name, CASES[name], device=device), 1e-12, 1e-12)


@pytest.mark.parametrize('name', ['deform_conv2d', 'modulated_deform_conv2d with bias'])
def test_retained_graph_can_be_used_twice(name, device):
    inputs = draw(name, CASES[name], device=device)
    output = call(CASES[name], inputs)
    once, twice = (
        torch.autograd.grad(output, tuple(inputs.values()), torch.full_like(output, scale), retain_graph=True)
        for scale in (1, 2)
    )
    torch.testing.assert_close([gradient * 2 for gradient in once], list(twice))


@pytest.mark.parametrize('name', ['deform_conv2d', 'deform_conv2d in groups', 'modulated_deform_conv2d'])
@pytest.mark.parametrize('key', ['x', 'offset', 'weight'])
def test_gradient_is_the_same_if_only_one_input_requires_it(name, key, device):
    inputs = draw(name, CASES[name], device=device)
    others = {other: tensor.detach() for other, tensor in inputs.items() if other != key}
    output = call(CASES[name], inputs | others)
    (gradient,) = torch.autograd.grad(output.sum(), inputs[key])
    expected = torch.autograd.grad(call(CASES[name], inputs).sum(), inputs[key])[0]
    torch.testing.assert_close(gradient, expected)


@supplied
def test_missing_op_raises_an_error_that_names_it():
    with pytest.raises(NotImplementedError, match='box_iou_rotated.*compiled ops'):
        OPS.box_iou_rotated(torch.rand(2, 5), torch.rand(3, 5))


WITH_COMPILED_OPS = """
import sys
import mmcv
import revcol_mm
mmcv.__path__.insert(0, sys.argv[1])
import mmcv._ext
print(mmcv._ext.nms)
"""


def test_mmcv_keeps_its_compiled_ops(tmp_path):
    (tmp_path / '_ext.py').write_text('nms = "compiled"')
    assert run('-c', WITH_COMPILED_OPS, tmp_path).split() == ['compiled']


WITHOUT_TORCHVISION = """
import sys
import revcol_mm
assert not {'torchvision', 'mmcv', 'mmcv.ops'} & sys.modules.keys()
sys.modules['torchvision'] = None  # importing it fails
try:
    import mmcv.ops
except ImportError as error:
    print(error)
"""


@supplied
def test_only_the_ops_need_torchvision():
    assert 'run: python -m revcol_mm.check_env' in run('-c', WITHOUT_TORCHVISION)
