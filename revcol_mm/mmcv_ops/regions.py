"""Pooling of regions of interest (RoIs).

RoIs are (R, 5): index of the image in the batch, x1, y1, x2 and y2. Each is divided into h * w bins, so that
the output is (R, C, h, w).

RoIAlign with average pooling is torchvision's op. The others are written for correctness, not speed: few
detectors use them.
"""

import itertools
from typing import Iterator, NamedTuple

import torch
import torchvision.ops
from torch import Tensor

from .autograd import upcast, write_gradients

MAX_POOL = 0  # RoIAlign's pooling mode 'max' in MMCV
LOWEST = -10_000  # MMCV's maximum over no samples
ROIS_AT_ONCE = 64  # bounds the memory of ops that are not torchvision's


class _Bins(NamedTuple):
    """Geometry of the bins of RoIs on the feature map. Each tensor is (R, 2): y and x."""

    start: Tensor  # coordinates of the RoI's top left corner
    size: Tensor  # side lengths of a bin
    grid: Tensor  # number of samples in a bin along each axis

    @classmethod
    def from_rois(
        cls,
        rois: Tensor,
        output_size: tuple[int, int],
        spatial_scale: float,
        sampling_ratio: int,
        aligned: bool,
    ) -> '_Bins':
        start, end = (rois[:, sides] * spatial_scale - 0.5 * aligned for sides in ([2, 1], [4, 3]))
        extent = end - start if aligned else (end - start).clamp(min=1)
        size = extent / extent.new_tensor(output_size)
        grid = torch.full_like(size, sampling_ratio) if sampling_ratio > 0 else size.ceil()
        return cls(start, size, grid.long())

    def groups(self) -> Iterator[tuple[Tensor, int, int]]:
        """Yield the indices of RoIs with the same number of samples in a bin, and its rows and columns.

        RoIs without samples are left out.
        """
        for rows, columns in self.grid.unique(dim=0).tolist():
            if rows > 0 and columns > 0:
                is_member = (self.grid == self.grid.new_tensor([rows, columns])).all(1)
                for part in is_member.nonzero()[:, 0].split(ROIS_AT_ONCE):
                    yield part, rows, columns

    def coordinates(self, axis: int, place: Tensor, sample: Tensor) -> Tensor:
        """Return coordinates of samples along one axis.

        Args:
            axis: 0 for y, 1 for x.
            place: Index of the bin along the axis.
            sample: Index of the sample in its bin along the axis.

        Returns:
            (R, ...), after broadcasting ``place`` and ``sample``.
        """
        trailing = (1,) * (max(place.ndim, sample.ndim) - 1)
        start, size, grid = (x[:, axis].view(-1, *trailing) for x in self)
        return start + (place + (sample + 0.5) / grid.clamp(min=1)) * size

    def samples(
        self, members: Tensor, rows: int, columns: int, output_size: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        """Return sample coordinates of K RoIs: y (K, 1, h, 1, rows, 1) and x (K, 1, 1, w, 1, columns)."""
        bins = _Bins(*(x[members] for x in self))
        count = torch.arange(max(*output_size, rows, columns)).to(self.start)
        y = bins.coordinates(0, count[: output_size[0]].view(1, 1, -1, 1, 1, 1), count[:rows].view(-1, 1))
        x = bins.coordinates(1, count[: output_size[1]].view(1, 1, 1, -1, 1, 1), count[:columns])
        return y, x


def _bilinear(features: Tensor, images: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """Interpolate features bilinearly; points more than one pixel outside the image are 0.

    Args:
        features: (B, C, H, W).
        images: Index of each RoI's image in the batch, (R,).
        y: Coordinates, which broadcast with ``x`` to (R, C, ...) or (R, 1, ...).
        x: Coordinates.

    Returns:
        (R, C, ...).
    """
    _, channels, height, width = features.shape
    inside = (y >= -1) & (y <= height) & (x >= -1) & (x <= width)
    near_y, near_x = (
        place.detach().where(inside, 0).clamp(0, size - 1) for place, size in ((y, height), (x, width))
    )
    low_y, low_x = near_y.long(), near_x.long()
    high_y, high_x = (low_y + 1).clamp(max=height - 1), (low_x + 1).clamp(max=width - 1)
    part_y, part_x = near_y - low_y, near_x - low_x
    planes = images[:, None] * channels + torch.arange(channels, device=images.device)
    planes = planes.view(*planes.shape, *(1,) * (inside.ndim - 2))

    def blend(features: Tensor, weights_y: tuple[Tensor, Tensor], weights_x: tuple[Tensor, Tensor]) -> Tensor:
        rows, columns = zip((low_y, high_y), weights_y), zip((low_x, high_x), weights_x)
        return sum(
            features.take((planes * height + row) * width + column) * (weight_y * weight_x)
            for (row, weight_y), (column, weight_x) in itertools.product(rows, columns)
        )

    values = blend(features, (1 - part_y, part_y), (1 - part_x, part_x))
    if y.requires_grad:
        # MMCV computes the gradient of coordinates from interpolation weights of the point before it is
        # clamped to the border. Add 0 with that gradient.
        linear = blend(features.detach(), (high_y - y, y - low_y), (high_x - x, x - low_x))
        values = values + (linear - linear.detach())
    return values * inside


def roi_align_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Apply RoIAlign, https://arxiv.org/abs/1703.06870, to features (B, C, H, W) and write into ``output``.

    For max pooling, ``argmax_y`` and ``argmax_x`` receive row and column of the highest sample in its bin, or
    -1 if there is no sample. (The compiled op stores coordinates instead, which half precision rounds.)
    """
    size = aligned_height, aligned_width
    features, boxes = upcast(input, rois)
    if pool_mode != MAX_POOL:
        output.copy_(torchvision.ops.roi_align(features, boxes, size, spatial_scale, sampling_ratio, aligned))
        return
    output.fill_(LOWEST)
    argmax_y.fill_(-1)
    argmax_x.fill_(-1)
    bins = _Bins.from_rois(boxes, size, spatial_scale, sampling_ratio, aligned)
    for members, rows, columns in bins.groups():
        y, x = bins.samples(members, rows, columns, size)
        values = _bilinear(features, boxes[members, 0].long(), y, x).flatten(-2)
        best = values.argmax(-1, keepdim=True)  # the first of equal values
        output[members] = values.gather(-1, best).squeeze(-1).clamp(min=LOWEST).to(output.dtype)
        argmax_y[members] = best.squeeze(-1).div(columns, rounding_mode='floor').to(output.dtype)
        argmax_x[members] = best.squeeze(-1).remainder(columns).to(output.dtype)


def roi_align_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_input: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Write the gradient of :func:`roi_align_forward` into ``grad_input`` (B, C, H, W)."""
    size = aligned_height, aligned_width
    features, boxes = upcast(grad_input, rois)

    def average(features: Tensor) -> Tensor:
        return torchvision.ops.roi_align(features, boxes, size, spatial_scale, sampling_ratio, aligned)

    def maximum(features: Tensor) -> Tensor:
        bins = _Bins.from_rois(boxes, size, spatial_scale, sampling_ratio, aligned)
        place_y, place_x = (torch.arange(n, device=rois.device) for n in size)
        y = bins.coordinates(0, place_y.view(-1, 1), argmax_y.to(boxes.dtype))
        x = bins.coordinates(1, place_x, argmax_x.to(boxes.dtype))
        return _bilinear(features, boxes[:, 0].long(), y, x) * (argmax_y >= 0)

    op = maximum if pool_mode == MAX_POOL else average
    write_gradients(op, [features], grad_output, [grad_input])


def roi_pool_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
) -> None:
    """Apply RoIPool, https://arxiv.org/abs/1504.08083, to features (B, C, H, W) and write into ``output``.

    MMCV rounds RoIs differently from torchvision. ``argmax`` receives the index of the maximum in its H * W
    plane. Empty bins are 0, and their ``argmax`` is -1.
    """
    height, width = input.shape[2:]
    features, boxes = upcast(input, rois)
    argmax.fill_(-1)
    start, end = boxes[:, [2, 1]] * spatial_scale, (boxes[:, [4, 3]] + 1) * spatial_scale
    limits = torch.tensor([height, width], device=rois.device)
    bin_size = (end - start) / start.new_tensor([pooled_height, pooled_width])
    for row in range(pooled_height):
        for column in range(pooled_width):
            place = start.new_tensor([row, column])
            low = (start + place * bin_size).floor().long().clamp(min=0).minimum(limits)
            high = (start + (place + 1) * bin_size).ceil().long().clamp(min=0).minimum(limits)
            filled = (high > low).all(1) & (end > start).all(1)
            members = filled.nonzero()[:, 0]
            for part in members.split(ROIS_AT_ONCE) if len(members) else ():
                extent = (high - low)[part].amax(0)
                y, x = (
                    low[part, axis, None] + torch.arange(extent[axis], device=rois.device) for axis in (0, 1)
                )
                beyond = (y >= high[part, 0, None])[:, :, None] | (x >= high[part, 1, None])[:, None]
                y, x = y.clamp(max=height - 1)[:, :, None], x.clamp(max=width - 1)[:, None]
                values = features[boxes[part, 0].long()[:, None, None], :, y, x]  # (K, rows, columns, C)
                values = values.masked_fill(beyond[..., None], -torch.inf).flatten(1, 2)
                best = values.argmax(1, keepdim=True)
                output[part, :, row, column] = values.gather(1, best)[:, 0].to(output.dtype)
                places = (y * width + x).flatten(1)
                argmax[part, :, row, column] = places.gather(1, best[:, 0]).to(argmax.dtype)


def roi_pool_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax: Tensor,
    grad_input: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
) -> None:
    """Write the gradient of :func:`roi_pool_forward` into ``grad_input`` (B, C, H, W)."""
    (gradient,) = upcast(grad_input)
    channels, plane = gradient.shape[1], gradient.shape[2:].numel()
    planes = rois[:, :1].long() * channels + torch.arange(channels, device=rois.device)
    places = planes[..., None, None] * plane + argmax
    pooled = argmax >= 0
    gradient = gradient.flatten().index_add(0, places[pooled], grad_output[pooled].to(gradient.dtype))
    grad_input.copy_(gradient.view_as(grad_input))


def _deform_roi_pool(
    input: Tensor,
    offset: Tensor,
    rois: Tensor,
    output_size: tuple[int, int],
    spatial_scale: float,
    sampling_ratio: int,
    gamma: float,
) -> Tensor:
    features, shift, boxes = upcast(input, offset, rois)
    bins = _Bins.from_rois(boxes, output_size, spatial_scale, sampling_ratio, aligned=True)
    if shift.numel():
        extent = bins.size * bins.size.new_tensor(output_size)
        shift = shift.view(-1, 2, *output_size) * gamma * extent.flip(1)[..., None, None]
    output = features.new_zeros(len(rois), features.shape[1], *output_size)
    for members, rows, columns in bins.groups():
        y, x = bins.samples(members, rows, columns, output_size)
        if shift.numel():
            shift_x, shift_y = shift[members, :, None, :, :, None, None].unbind(1)
            y, x = y + shift_y, x + shift_x
        output[members] = _bilinear(features, boxes[members, 0].long(), y, x).mean((-2, -1))
    return output.to(input.dtype)


def deform_roi_pool_forward(
    input: Tensor,
    rois: Tensor,
    offset: Tensor,
    output: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    gamma: float,
) -> None:
    """Apply deformable RoI pooling, https://arxiv.org/abs/1703.06211, and write into ``output``.

    ``input`` is (B, C, H, W). ``offset`` is (R, 2, h, w), x and y in units of ``gamma`` times the RoI's width
    and height, or empty.
    """
    size = pooled_height, pooled_width
    output.copy_(_deform_roi_pool(input, offset, rois, size, spatial_scale, sampling_ratio, gamma))


def deform_roi_pool_backward(
    grad_output: Tensor,
    input: Tensor,
    rois: Tensor,
    offset: Tensor,
    grad_input: Tensor,
    grad_offset: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    gamma: float,
) -> None:
    """Write the gradients of :func:`deform_roi_pool_forward` into ``grad_input`` and ``grad_offset``."""
    size = pooled_height, pooled_width

    def op(input: Tensor, offset: Tensor) -> Tensor:
        return _deform_roi_pool(input, offset, rois, size, spatial_scale, sampling_ratio, gamma)

    write_gradients(op, [input, offset], grad_output, [grad_input, grad_offset])
