"""MMCV's ops against slow references, published values and equivalent PyTorch modules."""

import math

import pytest
import torch

from .data.make_mmcv_ops import COMPILED_ON_CUDA_ONLY, OPS, compute
from .mmcv_ops_references import REFERENCES
from .test_mmcv_ops import CASES, as_params, assert_near, supplied

REFERENCED = [
    name
    for name, case in CASES.items()
    if not case.is_module and (name in COMPILED_ON_CUDA_ONLY or name.startswith('roi_align by'))
]


@pytest.mark.parametrize('name', as_params(name for name in REFERENCED if 'without RoIs' not in name))
def test_outputs_and_gradients_equal_the_reference(name, device):
    results, expected = (compute(name, CASES[name], device=device, ops=ops) for ops in (OPS, REFERENCES))
    assert_near(results, expected, 1e-12, 1e-12)


# Input, op, output and gradient in MMCV's own tests (tests/test_ops of open-mmlab/mmcv).
RAMP = [[[[1.0, 2, 5, 6], [3, 4, 7, 8], [9, 10, 13, 14], [11, 12, 15, 16]]]]
CORNERS, LOGITS = [[0.0, 0, 0, 3, 3]], [[1.0, 0, -1], [0, 1, 2]]
PUBLISHED = {
    'roi_pool': (
        RAMP,
        lambda x: OPS.roi_pool(x, x.new_tensor(CORNERS), (2, 2), 1.0),
        [[[[4.0, 8], [12, 16]]]],
        [[[[0.0, 0, 0, 0], [0, 1, 0, 1], [0, 0, 0, 0], [0, 1, 0, 1]]]],
    ),
    'deform_roi_pool': (
        RAMP,
        lambda x: OPS.deform_roi_pool(x, x.new_tensor(CORNERS), None, (2, 2), 1.0, 2),
        [[[[1.9375, 4.75], [7.5625, 10.375]]]],
        [
            [
                [
                    [0.47265625, 0.4296875, 0.4296875, 0.04296875],
                    [0.4296875, 0.390625, 0.390625, 0.0390625],
                    [0.4296875, 0.390625, 0.390625, 0.0390625],
                    [0.04296875, 0.0390625, 0.0390625, 0.00390625],
                ]
            ]
        ],
    ),
    'sigmoid_focal_loss': (
        LOGITS,
        lambda x: OPS.sigmoid_focal_loss(x, torch.tensor([2, 1], device=x.device), 2.0, 0.25, None, 'mean'),
        1.10251057,
        [[0.28808805, 0.11185755, -0.09602935], [0.11185755, -0.00657264, 0.40376765]],
    ),
    'softmax_focal_loss': (
        LOGITS,
        lambda x: OPS.softmax_focal_loss(x, torch.tensor([2, 1], device=x.device), 2.0, 0.25, None, 'mean'),
        0.34956908,
        [[0.10165970, 0.03739851, -0.13905823], [0.01227554, -0.10298023, 0.09070466]],
    ),
}


@supplied
@pytest.mark.parametrize('name', PUBLISHED)
def test_outputs_and_gradients_equal_those_in_mmcv_s_tests(name, device):
    x, op, output, gradient = PUBLISHED[name]
    x = torch.tensor(x, device=device, requires_grad=True)
    result = op(x)
    result.sum().backward()
    torch.testing.assert_close(result, torch.tensor(output, device=device))
    torch.testing.assert_close(x.grad, torch.tensor(gradient, device=device))


@supplied
def test_focal_losses_of_extreme_logits_are_finite(device):
    """If p is 0 in float32, MMCV takes the logarithm of the smallest normal number in the loss."""
    x = torch.tensor([[-200.0, 200], [-200, 200]], device=device, requires_grad=True)
    target = torch.tensor([0, 1], device=device)
    loss = OPS.sigmoid_focal_loss(x, target, 2.0, 0.25, None, 'none')
    (gradient,) = torch.autograd.grad(loss.sum(), x)
    largest = -math.log(torch.finfo(torch.float32).tiny)
    torch.testing.assert_close(loss, x.new_tensor([[0.25 * largest, 0.75 * largest], [0, 0]]))
    torch.testing.assert_close(gradient, x.new_tensor([[-0.25, 0.75], [0, 0]]))
    loss = OPS.softmax_focal_loss(x, target, 2.0, 0.25, None, 'sum')
    (gradient,) = torch.autograd.grad(loss, x)
    torch.testing.assert_close(loss, x.new_tensor(0.25 * largest))
    torch.testing.assert_close(gradient, x.new_tensor([[-0.25, 0.25], [0, 0]]))


@supplied
@pytest.mark.parametrize('kept', [0.0, 0.4, 1.0])
@pytest.mark.parametrize('dtype', [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_masked_convolution_equals_convolution_times_mask(kept, dtype, device):
    conv = OPS.MaskedConv2d(3, 4, (3, 5), padding=(1, 2)).to(device, dtype)
    x, mask = torch.randn(1, 3, 7, 6).to(device, dtype), torch.rand(1, 7, 6).to(device, dtype) < kept
    with torch.no_grad():
        output, expected = conv(x, mask), conv.double()(x.double()) * mask
    assert output.dtype == dtype
    bound = 4 * torch.finfo(dtype).eps
    torch.testing.assert_close(output.double(), expected, rtol=bound, atol=bound)


@supplied
def test_naive_carafe_equals_carafe(device):
    features, masks = torch.randn(2, 4, 3, 5, device=device), torch.randn(2, 18, 6, 10, device=device)
    torch.testing.assert_close(
        OPS.CARAFENaive(3, 2, 2)(features, masks), OPS.CARAFE(3, 2, 2)(features, masks), rtol=0, atol=0
    )


def deform(modulated, x, offset, mask, weight):
    if modulated:
        return OPS.modulated_deform_conv2d(x, offset, mask, weight, None, 2, 1)
    return OPS.deform_conv2d(x, offset, weight, 2, 1)


@pytest.mark.parametrize('modulated', [False, True])
def test_nan_offset_samples_zero(modulated, device):
    x, weight = torch.randn(2, 4, 9, 8, device=device), torch.randn(6, 4, 3, 3, device=device)
    offset, mask = torch.randn(2, 18, 5, 4, device=device), torch.rand(2, 9, 5, 4, device=device)
    offset[0, 3, 2, 2] = 1e6
    expected = deform(modulated, x, offset, mask, weight)
    offset[0, 3, 2, 2] = torch.nan
    assert torch.equal(deform(modulated, x, offset, mask, weight), expected)


def test_version_2_reads_the_first_values_of_larger_offsets_and_masks(device):
    """MMCV does so in version 2, and DyHead depends on it."""
    x, weight = torch.randn(2, 4, 9, 8, device=device), torch.randn(6, 4, 3, 3, device=device)
    maps = [torch.rand(2, channels, 9, 8, device=device) for channels in (18, 9)]
    first = [m.flatten(1)[:, : m.shape[1] * 20].view(2, -1, 5, 4).contiguous() for m in maps]
    torch.testing.assert_close(deform(True, x, *maps, weight), deform(True, x, *first, weight))
    with pytest.raises(RuntimeError, match='offset'):
        deform(False, x, *maps, weight)
