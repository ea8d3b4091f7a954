"""Slow reference implementations of MMCV's ops, loop by loop as in MMCV's CUDA kernels.

:data:`REFERENCES` has them under the names and arguments of ``mmcv.ops``.
"""

import math
from itertools import product
from types import SimpleNamespace

import torch
import torch.nn.functional as F
import torchvision.ops

from .data.make_mmcv_ops import OPS


def neighbours(coordinate, size):
    """Return the two pixels around a coordinate, clamped to the image, and the weight of the second."""
    coordinate = max(coordinate, 0)
    low = min(int(coordinate), size - 1)
    high = min(low + 1, size - 1)
    return low, high, coordinate - low if high > low else 0


def interpolate(plane, y, x):
    """Interpolate a feature map (C, H, W) at one position, as in ``common_cuda_helper.hpp``."""
    height, width = plane.shape[1:]
    if not (-1 <= y <= height and -1 <= x <= width):
        return plane.new_zeros(len(plane))
    (top, bottom, down), (left, right, along) = neighbours(y, height), neighbours(x, width)
    upper = (1 - along) * plane[:, top, left] + along * plane[:, top, right]
    lower = (1 - along) * plane[:, bottom, left] + along * plane[:, bottom, right]
    return (1 - down) * upper + down * lower


def bins(roi, output_size, scale, sampling_ratio, aligned):
    """Yield row, column and the positions of the samples of each bin of a RoI."""
    left, top, right, bottom = (side * scale - 0.5 * aligned for side in roi[1:])
    height, width = (max(extent, 0 if aligned else 1) for extent in (bottom - top, right - left))
    height, width = height / output_size[0], width / output_size[1]
    rows, columns = sampling_ratio or math.ceil(height), sampling_ratio or math.ceil(width)
    for row, column in product(*map(range, output_size)):
        ys = [top + (row + (i + 0.5) / rows) * height for i in range(rows)]
        xs = [left + (column + (i + 0.5) / columns) * width for i in range(columns)]
        yield row, column, list(product(ys, xs))


def pool(features, rois, output_size, pool_bin, *options):
    """Call ``pool_bin(plane, RoI index, row, column, positions)`` for every bin and stack the results."""
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
    """Return 0 with the derivatives of ``deform_roi_pool_cuda_kernel.cuh``, inexact at borders as there."""
    height, width = plane.shape[1:]
    if not (-1 <= y <= height and -1 <= x <= width):
        return 0
    (top, bottom, _), (left, right, _) = neighbours(y.item(), height), neighbours(x.item(), width)
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
    """Follow ``roi_pool_cuda_kernel.cuh``."""
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
    """Follow ``carafe_naive_cuda_kernel.cuh``."""
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
    # MMCV averages over samples.
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
