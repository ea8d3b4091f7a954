"""MMCV's ops against slow loops, written from its kernels, other implementations and published examples."""

import math
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
import torchvision.ops

from .data.make_mmcv_ops import COMPILED_ON_CUDA_ONLY, OPS, compute
from .subprocesses import run
from .test_mmcv_ops import CASES, assert_near, of, supplied


def axis(place, size):
    """The two pixels between which a place is, moved to the border, and the share of the second."""
    place = max(place, 0)
    low = min(int(place), size - 1)
    high = min(low + 1, size - 1)
    return low, high, place - low if high > low else 0


def interpolate(plane, y, x):
    """Values (C,) of a plane (C, H, W) at a place, by ``common_cuda_helper.hpp``."""
    height, width = plane.shape[1:]
    if not (-1 <= y <= height and -1 <= x <= width):
        return plane.new_zeros(len(plane))
    (top, bottom, down), (left, right, along) = axis(y, height), axis(x, width)
    upper = (1 - along) * plane[:, top, left] + along * plane[:, top, right]
    lower = (1 - along) * plane[:, bottom, left] + along * plane[:, bottom, right]
    return (1 - down) * upper + down * lower


def bins(roi, output_size, scale, sampling_ratio, aligned):
    """Row and column of each bin of a RoI, and the places of its samples."""
    left, top, right, bottom = (side * scale - 0.5 * aligned for side in roi[1:])
    height, width = (max(extent, 0 if aligned else 1) for extent in (bottom - top, right - left))
    height, width = height / output_size[0], width / output_size[1]
    rows, columns = sampling_ratio or math.ceil(height), sampling_ratio or math.ceil(width)
    for row, column in product(*map(range, output_size)):
        ys = [top + (row + (i + 0.5) / rows) * height for i in range(rows)]
        xs = [left + (column + (i + 0.5) / columns) * width for i in range(columns)]
        yield row, column, list(product(ys, xs))


def pool(features, rois, output_size, pool_bin, *options):
    """Put together what a function of a plane, a bin's place and samples' places returns for each."""
    pooled = [
        pool_bin(features[int(roi[0])], index, row, column, places)
        for index, roi in enumerate(rois.tolist())
        for row, column, places in bins(roi, output_size, *options)
    ]
    return torch.stack(pooled).view(len(rois), *output_size, -1).permute(0, 3, 1, 2)


def mean(values, plane):
    return sum(values, plane.new_zeros(len(plane))) / max(len(values), 1)


def roi_align(features, rois, output_size, scale, sampling_ratio, mode, aligned):
    def pool_bin(plane, index, row, column, places):
        values = [interpolate(plane, y, x) for y, x in places]
        if mode == 'avg':
            return mean(values, plane)
        return torch.stack([plane.new_full((len(plane),), -10_000), *values]).amax(0)

    return pool(features, rois, output_size, pool_bin, scale, sampling_ratio, aligned)


def slope(plane, y, x):
    """Zero, with the derivatives of ``deform_roi_pool_cuda_kernel.cuh``, which are its own at borders."""
    height, width = plane.shape[1:]
    if not (-1 <= y <= height and -1 <= x <= width):
        return 0
    (top, bottom, _), (left, right, _) = axis(y.item(), height), axis(x.item(), width)
    v00, v10, v01, v11 = (plane[:, i, j].detach() for i in (top, bottom) for j in (left, right))
    by_x = v11 * (y - top) + v10 * (bottom - y) + v01 * (top - y) + v00 * (y - bottom)
    by_y = v11 * (x - left) + v01 * (right - x) + v10 * (left - x) + v00 * (x - right)
    return by_y.detach() * (y - y.detach()) + by_x.detach() * (x - x.detach())


def deform_roi_pool(features, rois, offset, output_size, scale, sampling_ratio, gamma):
    def pool_bin(plane, index, row, column, places):
        if offset is None:
            return mean([interpolate(plane, y, x) for y, x in places], plane)
        extent = (rois[index, 3:] - rois[index, 1:3]) * scale
        move_x, move_y = gamma * extent * offset[index, :, row, column]
        places = [(y + move_y, x + move_x) for y, x in places]
        return mean([interpolate(plane, y.item(), x.item()) + slope(plane, y, x) for y, x in places], plane)

    return pool(features, rois, output_size, pool_bin, scale, sampling_ratio, True)


def roi_pool(features, rois, output_size, scale):
    """``roi_pool_cuda_kernel.cuh``."""
    output = features.new_zeros(len(rois), features.shape[1], *output_size)
    height, width = features.shape[2:]
    for index, (image, left, top, right, bottom) in enumerate(rois.tolist()):
        left, top, right, bottom = left * scale, top * scale, (right + 1) * scale, (bottom + 1) * scale
        bin_height, bin_width = (bottom - top) / output_size[0], (right - left) / output_size[1]
        for row, column in product(*map(range, output_size)):
            y1, y2 = math.floor(row * bin_height + top), math.ceil((row + 1) * bin_height + top)
            x1, x2 = math.floor(column * bin_width + left), math.ceil((column + 1) * bin_width + left)
            y1, y2 = (min(max(y, 0), height) for y in (y1, y2))
            x1, x2 = (min(max(x, 0), width) for x in (x1, x2))
            if y1 < y2 and x1 < x2 and bottom > top and right > left:
                output[index, :, row, column] = features[int(image), :, y1:y2, x1:x2].flatten(1).max(1).values
    return output


def carafe(features, masks, kernel_size, groups, scale):
    """``carafe_naive_cuda_kernel.cuh``."""
    batch, channels, height, width = features.shape
    features = features.view(batch, groups, channels // groups, height, width)
    masks = masks.view(batch, groups, 1, kernel_size, kernel_size, height * scale, width * scale)
    half = kernel_size // 2
    pixels = []
    for y, x in product(range(height * scale), range(width * scale)):
        row, column = y // scale - half, x // scale - half
        taps = [
            masks[:, :, :, i, j, y, x] * features[..., row + i, column + j]
            for i, j in product(range(kernel_size), repeat=2)
            if 0 <= row + i < height and 0 <= column + j < width
        ]
        pixels.append(sum(taps).flatten(1))
    return torch.stack(pixels, 2).view(batch, channels, height * scale, width * scale)


def sigmoid_focal_loss(x, target, gamma, alpha, weight, reduction):
    positive = F.one_hot(target, x.shape[1] + 1)[:, :-1].to(x)
    loss = torchvision.ops.sigmoid_focal_loss(x, positive, alpha, gamma)
    return reduce_loss(loss if weight is None else loss * weight[target, None], reduction)


def softmax_focal_loss(x, target, gamma, alpha, weight, reduction):
    log_p = x.log_softmax(1).gather(1, target[:, None])[:, 0]
    loss = -alpha * (1 - log_p.exp()) ** gamma * log_p
    return reduce_loss(loss if weight is None else loss * weight[target], reduction)


def reduce_loss(loss, reduction):
    """MMCV's mean is over targets."""
    return {'none': loss, 'sum': loss.sum(), 'mean': loss.sum() / len(loss)}[reduction]


def attend(value, spatial_shapes, level_start_index, locations, weights, im2col_step):
    return OPS.multi_scale_deform_attn.multi_scale_deformable_attn_pytorch(
        value, spatial_shapes, locations, weights
    )


REFERENCES = SimpleNamespace(
    roi_align=roi_align,
    roi_pool=roi_pool,
    deform_roi_pool=deform_roi_pool,
    carafe=carafe,
    sigmoid_focal_loss=sigmoid_focal_loss,
    softmax_focal_loss=softmax_focal_loss,
    multi_scale_deform_attn=SimpleNamespace(MultiScaleDeformableAttnFunction=SimpleNamespace(apply=attend)),
)


REFERENCED = [
    name
    for name, case in CASES.items()
    if not case.is_module and (name in COMPILED_ON_CUDA_ONLY or name.startswith('roi_align by'))
]


@pytest.mark.parametrize('name', of(name for name in REFERENCED if 'without RoIs' not in name))
def test_outputs_and_gradients_are_those_of_the_reference(name, device):
    results, expected = (compute(name, CASES[name], device=device, ops=ops) for ops in (OPS, REFERENCES))
    assert_near(results, expected, 1e-12, 1e-12)


# Inputs, outputs and gradients of MMCV's tests (tests/test_ops of open-mmlab/mmcv).
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
def test_outputs_and_gradients_are_the_published_ones(name, device):
    x, op, output, gradient = PUBLISHED[name]
    x = torch.tensor(x, device=device, requires_grad=True)
    result = op(x)
    result.sum().backward()
    torch.testing.assert_close(result, torch.tensor(output, device=device))
    torch.testing.assert_close(x.grad, torch.tensor(gradient, device=device))


@supplied
def test_focal_losses_of_certain_logits_are_finite(device):
    """There p is 0 in float32, and MMCV's logarithm that of the smallest number, but for the gradient."""
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
def test_masked_convolution_is_a_convolution_where_the_mask_is(kept, dtype, device):
    conv = OPS.MaskedConv2d(3, 4, (3, 5), padding=(1, 2)).to(device, dtype)
    x, mask = torch.randn(1, 3, 7, 6).to(device, dtype), torch.rand(1, 7, 6).to(device, dtype) < kept
    with torch.no_grad():
        output, expected = conv(x, mask), conv.double()(x.double()) * mask
    assert output.dtype == dtype
    bound = 4 * torch.finfo(dtype).eps
    torch.testing.assert_close(output.double(), expected, rtol=bound, atol=bound)


@supplied
def test_naive_carafe_is_carafe(device):
    features, masks = torch.randn(2, 4, 3, 5, device=device), torch.randn(2, 18, 6, 10, device=device)
    torch.testing.assert_close(
        OPS.CARAFENaive(3, 2, 2)(features, masks), OPS.CARAFE(3, 2, 2)(features, masks), rtol=0, atol=0
    )


def batch_norm(dtype=torch.float32, device='cpu'):
    """A batch, weights of the output, and plain normalization, whose parameters and statistics are random."""
    x, weights = torch.randn(2, 4, 3, 5, 2).to(device, dtype)
    norm = torch.nn.BatchNorm2d(3, momentum=0.3)
    for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
        torch.nn.init.uniform_(tensor, 0.5, 1.5)
    return x.requires_grad_(), weights, norm.to(device)


@supplied
@pytest.mark.parametrize('dtype', [torch.float32, torch.float16])  # MMCV takes no others
def test_sync_bn_of_one_process_is_batch_norm(dtype, device, tmp_path):
    x, weights, plain = batch_norm(dtype, device)
    exact = x.detach().double().requires_grad_()
    dist.init_process_group('gloo', init_method=f'file://{tmp_path / "rendezvous"}', rank=0, world_size=1)
    try:
        norm = OPS.SyncBatchNorm(3, momentum=0.3).to(device)
        norm.load_state_dict(plain.state_dict())
        output, expected = norm(x), plain.double()(exact)
        output.backward(weights)
        expected.backward(weights.double())
        assert output.dtype == x.grad.dtype == dtype
        bound = torch.finfo(dtype).eps * 4
        for result, other in zip(
            [output, x.grad, *norm.buffers(), norm.weight.grad, norm.bias.grad, norm.eval()(x)],
            [expected, exact.grad, *plain.buffers(), plain.weight.grad, plain.bias.grad, plain.eval()(exact)],
            strict=True,
        ):
            torch.testing.assert_close(result.double(), other.double(), rtol=bound, atol=bound)
    finally:
        dist.destroy_process_group()


SYNC_BN = """
import sys
import torch
import torch.distributed as dist
import revcol_mm
from mmcv.ops import SyncBatchNorm

rank, folder = int(sys.argv[1]), sys.argv[2]
dist.init_process_group('gloo', init_method=f'file://{folder}/rendezvous', rank=rank, world_size=2)
x, weights, state = torch.load(f'{folder}/batch.pt')
results = {}
for mode, part in (('default', slice(rank * 2, rank * 2 + 2)), ('N', slice(rank * 4, 4))):
    norm, mine = SyncBatchNorm(3, momentum=0.3, stats_mode=mode), x[part].requires_grad_()
    norm.load_state_dict(state)
    output = norm(mine)
    output.backward(weights[part])
    grads = mine.grad, norm.weight.grad, norm.bias.grad
    results[mode] = output.detach(), norm.running_mean, norm.running_var, *grads
torch.save(results, f'{folder}/{rank}.pt')
dist.barrier()
dist.destroy_process_group()
"""


@supplied
def test_sync_bn_of_two_processes_is_batch_norm_of_both_batches(tmp_path):
    x, weights, plain = batch_norm()
    torch.save((x.detach(), weights, plain.state_dict()), tmp_path / 'batch.pt')
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda rank: run('-c', SYNC_BN, rank, tmp_path), range(2)))
    results = [torch.load(tmp_path / f'{rank}.pt') for rank in range(2)]
    expected = plain(x)
    expected.backward(weights)
    statistics = plain.running_mean, plain.running_var
    means_of_processes = plain.weight.grad / 2, plain.bias.grad / 2
    for result, output, grad in zip(results, expected.detach().split(2), x.grad.split(2), strict=True):
        torch.testing.assert_close(result['default'], (output, *statistics, grad, *means_of_processes))
        torch.testing.assert_close(result['N'][1], plain.running_mean)
    # By 'N' images count alike, and the second process has none.
    torch.testing.assert_close(results[0]['N'][0], expected.detach())
    assert len(results[1]['N'][0]) == 0


def deform(modulated, x, offset, mask, weight):
    if modulated:
        return OPS.modulated_deform_conv2d(x, offset, mask, weight, None, 2, 1)
    return OPS.deform_conv2d(x, offset, weight, 2, 1)


@pytest.mark.parametrize('modulated', [False, True])
def test_an_offset_that_is_no_number_samples_nothing(modulated, device):
    x, weight = torch.randn(2, 4, 9, 8, device=device), torch.randn(6, 4, 3, 3, device=device)
    offset, mask = torch.randn(2, 18, 5, 4, device=device), torch.rand(2, 9, 5, 4, device=device)
    offset[0, 3, 2, 2] = 1e6
    expected = deform(modulated, x, offset, mask, weight)
    offset[0, 3, 2, 2] = torch.nan
    assert torch.equal(deform(modulated, x, offset, mask, weight), expected)


def test_of_larger_offsets_and_masks_a_sample_s_first_values_count(device):
    """So MMCV reads them, unless they are those of version 1, and DyHead depends on it."""
    x, weight = torch.randn(2, 4, 9, 8, device=device), torch.randn(6, 4, 3, 3, device=device)
    maps = [torch.rand(2, channels, 9, 8, device=device) for channels in (18, 9)]
    first = [m.flatten(1)[:, : m.shape[1] * 20].view(2, -1, 5, 4).contiguous() for m in maps]
    torch.testing.assert_close(deform(True, x, *maps, weight), deform(True, x, *first, weight))
    with pytest.raises(RuntimeError, match='offset'):
        deform(False, x, *maps, weight)
