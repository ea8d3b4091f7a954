"""Deformable convolution, versions 1 and 2, and multi-scale deformable attention."""

from collections.abc import Iterable
from functools import partial
from importlib.util import find_spec

import torch
import torch.nn.functional as F
import torchvision.ops
from torch import Tensor

from .autograd import upcast, write_gradients

Pair = tuple[int, int]
# MMCV's names of stride, padding and dilation along y and x
GEOMETRY_1 = ('dH', 'dW'), ('padH', 'padW'), ('dilationH', 'dilationW')
GEOMETRY_2 = ('stride_h', 'stride_w'), ('pad_h', 'pad_w'), ('dilation_h', 'dilation_w')


def _deform_conv(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    mask: Tensor | None = None,
    bias: Tensor | None = None,
    **geometry: int,
) -> Tensor:
    """Compute version 1, or version 2 if there is a mask. Sizes and numbers of groups follow from shapes."""
    names = GEOMETRY_1 if mask is None else GEOMETRY_2
    stride, padding, dilation = ((geometry[along_y], geometry[along_x]) for along_y, along_x in names)
    x, offset, weight = upcast(input, offset, weight)
    bias = bias if bias is None else bias.to(x.dtype)
    # torchvision crashes on NaN; in MMCV such a sample lies outside the image.
    offset = offset.where(~offset.isnan(), torch.inf)
    if mask is not None:
        sides = zip(x.shape[2:], weight.shape[2:], stride, padding, dilation)
        size = [
            (side + 2 * pad - gap * (kernel - 1) - 1) // step + 1 for side, kernel, step, pad, gap in sides
        ]
        offset, mask = (_take_first(maps, *size) for maps in (offset, mask.to(x.dtype)))
    return torchvision.ops.deform_conv2d(x, offset, weight, bias, stride, padding, dilation, mask)


def _take_first(maps: Tensor, height: int, width: int) -> Tensor:
    """Return maps (B, C, height, width) made of the first values of each sample's maps.

    MMCV checks the size of offsets in version 1 only. In version 2 it reads the first values of maps that are
    larger than the output, and DyHead depends on that.
    """
    if maps.shape[2:] == (height, width):
        return maps
    batch, channels = maps.shape[:2]
    return maps.flatten(1)[:, : channels * height * width].view(batch, channels, height, width)


def deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    offset: Tensor,
    output: Tensor,
    columns: Tensor,
    ones: Tensor,
    **geometry: int,
) -> None:
    """Apply deformable convolution, https://arxiv.org/abs/1703.06211.

    Args:
        input: (B, C, H, W).
        weight: (D, C / groups, kh, kw).
        offset: (B, 2 * deformable groups * kh * kw, h, w); channels are y and x of each tap in turn.
        output: (B, D, h, w).
        columns: Scratch memory. :func:`deform_conv_backward_input` passes the weight's gradient in it.
        ones: Not used.
        geometry: Stride, padding and dilation under MMCV's names.
    """
    output.copy_(_deform_conv(input, offset, weight, **geometry))


def deform_conv_backward_input(
    input: Tensor,
    offset: Tensor,
    grad_output: Tensor,
    grad_input: Tensor,
    grad_offset: Tensor,
    weight: Tensor,
    columns: Tensor,
    **geometry: int,
) -> None:
    """Write the gradients of input and offset, and store the weight's gradient in ``columns``."""
    targets = [grad_input, grad_offset, columns.resize_(weight.shape)]
    write_gradients(partial(_deform_conv, **geometry), [input, offset, weight], grad_output, targets)


def deform_conv_backward_parameters(
    input: Tensor,
    offset: Tensor,
    grad_output: Tensor,
    grad_weight: Tensor,
    columns: Tensor,
    ones: Tensor,
    **geometry: int,
) -> None:
    """Write the gradient of the weight, from ``columns`` if :func:`deform_conv_backward_input` was called."""
    if columns.numel():
        grad_weight.copy_(columns)
    else:  # The op is linear in the weight: any tensor of its shape will do.
        op = partial(_deform_conv, input, offset, **geometry)
        write_gradients(op, [grad_weight], grad_output, [grad_weight])


def modulated_deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    output: Tensor,
    columns: Tensor,
    with_bias: bool,
    **geometry: int,
) -> None:
    """Apply modulated deformable convolution (version 2), https://arxiv.org/abs/1811.11168.

    ``mask`` is (B, deformable groups * kh * kw, h, w); see :func:`deform_conv_forward` for the others.
    """
    bias = bias if with_bias else None
    output.copy_(_deform_conv(input, offset, weight, mask, bias, **geometry))


def modulated_deform_conv_backward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    columns: Tensor,
    grad_input: Tensor,
    grad_weight: Tensor,
    grad_bias: Tensor,
    grad_offset: Tensor,
    grad_mask: Tensor,
    grad_output: Tensor,
    with_bias: bool,
    **geometry: int,
) -> None:
    """Write the gradients of :func:`modulated_deform_conv_forward`."""
    inputs = [input, offset, weight, mask] + [bias] * with_bias
    targets = [grad_input, grad_offset, grad_weight, grad_mask, grad_bias]
    write_gradients(partial(_deform_conv, **geometry), inputs, grad_output, targets)


def _use_kernels(value: Tensor) -> bool:
    """Whether to run the fused kernels."""
    return value.is_cuda and find_spec('triton') is not None


def attend_to_level(size: Pair, value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    """Compute deformable attention to one level.

    Args:
        size: H and W.
        value: (B, H * W, heads, D).
        locations: (B, Q, heads, P, 2), x and y, from 0 to 1.
        weights: (B, Q, heads, P).

    Returns:
        (B, Q, heads * D).
    """
    batch, _, heads, depth = value.shape
    _, queries, _, points, _ = locations.shape
    maps = value.permute(0, 2, 3, 1).reshape(batch * heads, depth, *size)
    grid = (2 * locations - 1).transpose(1, 2).reshape(batch * heads, queries, points, 2)
    weights = weights.transpose(1, 2).reshape(batch * heads, 1, queries, points)
    samples = F.grid_sample(maps, grid, align_corners=False)  # (B * heads, D, Q, P)
    return (samples * weights).sum(-1).view(batch, heads * depth, queries).transpose(1, 2)


def _split_levels(
    spatial_shapes: Tensor, value: Tensor, locations: Tensor, weights: Tensor
) -> Iterable[tuple[Pair, Tensor, Tensor, Tensor]]:
    """Split tensors into views; return the arguments of :func:`attend_to_level` for each level."""
    sizes = spatial_shapes.tolist()
    values = value.split([height * width for height, width in sizes], dim=1)
    return zip(sizes, values, locations.unbind(3), weights.unbind(3))


def ms_deform_attn_forward(
    value: Tensor,
    value_spatial_shapes: Tensor,
    value_level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    im2col_step: int,
) -> Tensor:
    """Compute multi-scale deformable attention, https://arxiv.org/abs/2010.04159 (equation 3).

    Without the fused kernels, levels are computed one by one, so that only one's samples are in memory.

    Args:
        value: (B, S, heads, D); S is the number of pixels of all levels.
        value_spatial_shapes: (L, 2), height and width of each level.
        value_level_start_index: (L,), index of each level's first pixel in S.
        sampling_locations: (B, Q, heads, L, P, 2), x and y, from 0 to 1; the value outside is 0.
        attention_weights: (B, Q, heads, L, P).
        im2col_step: Not used.

    Returns:
        (B, Q, heads * D).
    """
    if _use_kernels(value):
        from .deformable_attention_kernels import forward

        return forward(
            value, value_spatial_shapes, value_level_start_index, sampling_locations, attention_weights
        )
    tensors = upcast(value, sampling_locations, attention_weights)
    output = sum(attend_to_level(*level) for level in _split_levels(value_spatial_shapes, *tensors))
    return output.to(value.dtype)


def ms_deform_attn_backward(
    value: Tensor,
    value_spatial_shapes: Tensor,
    value_level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    grad_output: Tensor,
    grad_value: Tensor,
    grad_sampling_loc: Tensor,
    grad_attn_weight: Tensor,
    im2col_step: int,
) -> None:
    """Write the gradients of :func:`ms_deform_attn_forward`."""
    inputs = value, sampling_locations, attention_weights
    targets = grad_value, grad_sampling_loc, grad_attn_weight
    # Neither has deterministic gradients on CUDA, but `grid_sample` raises torch's error or warning.
    if _use_kernels(value) and not torch.are_deterministic_algorithms_enabled():
        from .deformable_attention_kernels import backward

        shapes = value_spatial_shapes, value_level_start_index
        for target, grad in zip(targets, backward(value, *shapes, *inputs[1:], grad_output)):
            target.copy_(grad)
        return
    levels = _split_levels(value_spatial_shapes, *upcast(*inputs))
    level_targets = _split_levels(value_spatial_shapes, *targets)
    for (size, *tensors), (_, *views) in zip(levels, level_targets):
        write_gradients(partial(attend_to_level, size), tensors, grad_output, views)
