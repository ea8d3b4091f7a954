"""The Triton kernels of deformable attention against MMCV's implementation in PyTorch.

They run in Triton's interpreter and on a GPU, and are compiled for GPUs that need not be present.
"""

import os
import random
from types import SimpleNamespace

import pytest
import torch
from mmcv.ops.multi_scale_deform_attn import multi_scale_deformable_attn_pytorch

from .subprocesses import run

pytest.importorskip('triton')
from triton import JITFunction
from triton.backends.compiler import GPUTarget

from revcol_mm.mmcv_ops import deformable
from revcol_mm.mmcv_ops import deformable_attention_kernels as kernels

INTERPRETED = os.environ.get('TRITON_INTERPRET') == '1'
interpreted = pytest.mark.skipif(not INTERPRETED, reason='test_kernels_in_the_interpreter runs it')
compiled = pytest.mark.skipif(INTERPRETED, reason='the interpreter does not compile')

# dtypes of the value, and of locations and weights; the last two pairs occur under autocast.
DTYPES = [
    (torch.float64, torch.float64),
    (torch.float32, torch.float32),
    (torch.float16, torch.float16),
    (torch.bfloat16, torch.bfloat16),
    (torch.float16, torch.float32),
    (torch.bfloat16, torch.float32),
]


def problem(
    sizes, batch_size=2, num_queries=3, num_heads=2, dim=4, num_points=2, dtypes=DTYPES[0], device='cpu'
):
    """Return random value, level sizes, locations, weights and gradient of the output.

    Half of the locations are outside the image. All are multiples of 1/4096, so that float32 finds the same
    pixels as float64.
    """
    value_dtype, dtype = dtypes
    num_pixels = sum(height * width for height, width in sizes)
    value = torch.randn(batch_size, num_pixels, num_heads, dim, device=device).to(value_dtype)
    samples = (batch_size, num_queries, num_heads, len(sizes), num_points)
    locations = (torch.randint(-1024, 5 * 1024, (*samples, 2), device=device) / 4096).to(dtype)
    weights = torch.rand(samples, device=device).to(dtype)
    grad_output = torch.randn(batch_size, num_queries, num_heads * dim, device=device).to(value_dtype)
    return value, sizes, locations, weights, grad_output


def fused(value, sizes, locations, weights, grad_output):
    """Return output and gradients of the kernels."""
    shapes = torch.tensor(sizes, device=value.device)
    starts = torch.cat([shapes.new_zeros(1), shapes.prod(1).cumsum(0)[:-1]])
    inputs = value, shapes, starts, locations, weights
    return kernels.forward(*inputs), *kernels.backward(*inputs, grad_output)


def assert_exact(value, sizes, locations, weights, grad_output):
    """Compare with MMCV's function in float64. Half precision may differ in the last bit only."""
    actual = fused(value, sizes, locations, weights, grad_output)
    inputs = [x.double().requires_grad_() for x in (value, locations, weights)]
    output = multi_scale_deformable_attn_pytorch(inputs[0], torch.tensor(sizes), *inputs[1:])
    expected = output, *torch.autograd.grad(output, inputs, grad_output.double())
    precision = 1e-12 if torch.float64 in (value.dtype, locations.dtype) else 1e-5
    names = 'output', 'gradient of value', 'gradient of locations', 'gradient of weights'
    for name, result, exact, same_type in zip(
        names, actual, expected, (grad_output, value, locations, weights)
    ):
        torch.testing.assert_close(
            result,
            exact.to(same_type.dtype),
            rtol=torch.finfo(result.dtype).eps,
            atol=precision * exact.abs().max().item(),
            msg=lambda message, name=name: f'{name}: {message}',
        )


def test_deterministic_algorithms_replace_only_the_backward_kernel(monkeypatch):
    """`grid_sample` raises torch's error, or warns, on a GPU; the forward kernel is deterministic."""
    monkeypatch.setattr(kernels, 'forward', lambda *_: 'kernel')
    monkeypatch.setattr(kernels, 'backward', lambda *_: pytest.fail('the kernel ran'))
    monkeypatch.setattr(deformable, '_use_kernels', lambda value: True)
    monkeypatch.setattr(torch, 'are_deterministic_algorithms_enabled', lambda: True)
    value, sizes, locations, weights, grad = problem([(2, 2)])
    inputs = value, torch.tensor(sizes), torch.tensor([0]), locations, weights
    assert deformable.ms_deform_attn_forward(*inputs, 64) == 'kernel'
    targets = [torch.full_like(each, torch.nan) for each in (value, locations, weights)]
    deformable.ms_deform_attn_backward(*inputs, grad, *targets, 64)
    assert all(each.isfinite().all() for each in targets)


@compiled
def test_kernels_in_the_interpreter():
    """Run this file in a new process, because TRITON_INTERPRET must be set before Triton is imported."""
    output = run('-m', 'pytest', '-p', 'no:xdist', '-o', 'addopts=', __file__, TRITON_INTERPRET='1')
    assert ' passed' in output


@interpreted
@pytest.mark.parametrize('seed', range(15))
def test_random_shapes(seed):
    draw = random.Random(seed)
    inputs = problem(
        sizes=[(draw.randint(1, 5), draw.randint(1, 5)) for _ in range(draw.randint(1, 2))],
        batch_size=draw.randint(1, 2),
        num_queries=draw.randint(1, 3),
        num_heads=draw.randint(1, 3),
        dim=draw.choice([1, 3, 8, 20, 129]),
        num_points=draw.randint(1, 2),
        dtypes=DTYPES[seed % len(DTYPES)],
    )
    assert_exact(*inputs)


@interpreted
@pytest.mark.parametrize('dtypes', DTYPES[:3], ids=str)
@pytest.mark.parametrize('size', [(1, 1), (2, 4)])
def test_locations_at_pixel_centres_and_borders(size, dtypes):
    """Locations on and halfway between pixel centres, up to two pixels outside, are exact in float16."""
    ys, xs = (torch.arange(-3, 2 * length + 4) / (2 * length) for length in size)
    value, _, _, weights, grad_output = problem([size], 1, len(ys) * len(xs), num_points=1, dtypes=dtypes)
    locations = torch.cartesian_prod(xs, ys).to(weights.dtype)[None, :, None, None, None]
    assert_exact(value, [size], locations.expand(*weights.shape, 2), weights, grad_output)


@interpreted
def test_non_finite_and_huge_locations_sample_zeros():
    value, sizes, locations, weights, grad_output = problem([(3, 2), (1, 1)], num_queries=4)
    locations[:, :, :, :, 0, 0] = -7
    expected = fused(value, sizes, locations, weights, grad_output)
    for query, far in enumerate([float('nan'), float('inf'), -1e30, 1e30]):
        locations[:, query, :, :, 0, 0] = far
    for result, like in zip(fused(value, sizes, locations, weights, grad_output), expected):
        assert torch.equal(result, like)


@interpreted
def test_inputs_need_not_be_contiguous():
    value, sizes, *others = problem([(3, 2), (1, 1)])
    expected = fused(value, sizes, *others)
    value, *others = (x.transpose(0, 1).contiguous().transpose(0, 1) for x in (value, *others))
    assert not value.is_contiguous()
    for result, like in zip(fused(value, sizes, *others), expected):
        assert result.is_contiguous() and torch.equal(result, like)


@pytest.mark.parametrize('empty', ['batch_size', 'num_queries'])
def test_without_queries_or_images_gradients_are_zero(empty):
    value, sizes, locations, weights, grad_output = problem([(3, 2)], **{empty: 0})
    results = fused(value, sizes, locations, weights, grad_output)
    for result, like in zip(results, (grad_output, value, locations, weights)):
        assert torch.equal(result, torch.zeros_like(like))


@compiled
@pytest.mark.parametrize('arch, dtypes', list(zip([80, 90] * 3, DTYPES)), ids=str)
def test_compiled_kernels_are_efficient(arch, dtypes, monkeypatch):
    """At a common size, threads read 16 bytes at once, no register spills, and atomics return nothing.

    The kernels are compiled for a GPU architecture and not launched.
    """
    device = SimpleNamespace(
        get_current_device=lambda: arch,
        get_current_stream=lambda device: 0,
        get_current_target=lambda: GPUTarget('cuda', arch, 32),
    )
    assemblies, run_kernel = [], JITFunction.run

    def compile_only(kernel, *args, warmup, **options):
        assemblies.append(run_kernel(kernel, *args, warmup=True, **options).asm['sass'])

    monkeypatch.setattr('triton.runtime.jit.driver', SimpleNamespace(active=device))
    monkeypatch.setattr(JITFunction, 'run', compile_only)
    fused(*problem([(2, 2)] * 4, num_heads=8, dim=32, num_points=4, dtypes=dtypes))
    forward, backward = assemblies
    for assembly in (forward, backward):
        assert 'LDG.E.128' in assembly
        assert 'STL' not in assembly  # stores to local memory, where registers are spilled
    assert 'RED' in backward and 'ATOM' not in backward


@compiled
@pytest.mark.cuda
@pytest.mark.parametrize('dtypes', DTYPES, ids=str)
@pytest.mark.parametrize('dim', [20, 32])
def test_on_a_gpu(dim, dtypes):
    sizes = [(50, 67), (25, 34), (13, 17), (1, 1)]
    assert_exact(*problem(sizes, 2, 1000, 8, dim, num_points=4, dtypes=dtypes, device='cuda'))


@compiled
@pytest.mark.cuda
def test_offsets_beyond_int32():
    if torch.cuda.mem_get_info()[0] < 20e9:
        pytest.skip('needs 20 GB')
    size = 2**14, 2**13 + 1
    options = dict(device='cuda', dtype=torch.float16)
    value = torch.zeros(1, size[0] * size[1], 1, 16, **options)
    value[0, -1] = 1
    locations = 1 - 0.5 / torch.tensor(size[::-1], device='cuda').expand(1, 1, 1, 1, 1, 2)  # the last pixel
    weights = torch.ones(1, 1, 1, 1, 1, device='cuda')
    grad_output = torch.ones(1, 1, 16, **options)
    output, grad_value, _, grad_weights = fused(value, [size], locations, weights, grad_output)
    assert output.min() > 0.99 and grad_value[0, -1].min() > 0.99 and grad_weights.item() > 15.9
