"""Deformable convolution, versions 1 and 2, and multi-scale deformable attention."""

from importlib.util import find_spec
from typing import Any, Callable, Iterator

import torch
import torch.nn.functional as F
import torchvision.ops
from torch import Tensor

from .autograd import gradients, upcast


def _deform_conv(
    stride: tuple[int, int], padding: tuple[int, int], dilation: tuple[int, int]
) -> Callable[..., Tensor]:
    """Both versions, as a function of tensors. Torchvision reads numbers of groups off their shapes."""

    def op(
        input: Tensor, offset: Tensor, weight: Tensor, mask: Tensor | None = None, bias: Tensor | None = None
    ) -> Tensor:
        x, offset, weight = upcast(input, offset, weight)
        bias = bias if bias is None else bias.to(x.dtype)
        offset = offset.where(~offset.isnan(), torch.inf)  # outside, as to MMCV: torchvision crashes on NaN
        if mask is not None:
            geometry = zip(x.shape[2:], weight.shape[2:], stride, padding, dilation)
            size = [
                (side + 2 * pad - gap * (kernel - 1) - 1) // step + 1
                for side, kernel, step, pad, gap in geometry
            ]
            offset, mask = (_of_size(maps, *size) for maps in (offset, mask.to(x.dtype)))
        return torchvision.ops.deform_conv2d(x, offset, weight, bias, stride, padding, dilation, mask)

    return op


def _of_size(maps: Tensor, height: int, width: int) -> Tensor:
    """Maps (B, C, height, width) of each sample's first values.

    MMCV checks sizes in version 1 alone. In version 2 it reads these of larger maps, as DyHead's are.
    """
    if maps.shape[2:] == (height, width):
        return maps
    batch, channels = maps.shape[:2]
    return maps.flatten(1)[:, : channels * height * width].view(batch, channels, height, width)


def _version1(dH: int, dW: int, padH: int, padW: int, dilationH: int, dilationW: int, **_: Any) -> Callable:
    return _deform_conv((dH, dW), (padH, padW), (dilationH, dilationW))


def deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    offset: Tensor,
    output: Tensor,
    columns: Tensor,
    ones: Tensor,
    **geometry: int,
) -> None:
    """Deformable convolution, https://arxiv.org/abs/1703.06211, of (B, C, H, W) into ``output`` (B, D, h, w).

    Args:
        input: (B, C, H, W).
        weight: (D, C / groups, kh, kw).
        offset: (B, 2 * deformable groups * kh * kw, h, w), of y and x in turn.
        output: (B, D, h, w).
        columns: Free for use between the passes; here keeps the weight's gradient between their functions.
        ones: Not used.
        geometry: MMCV's names and values of stride, padding and dilation; others are read off the shapes.
    """
    output.copy_(_version1(**geometry)(input, offset, weight))


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
    """Gradients of input and offset; that of the weight, which comes with them, waits in ``columns``."""
    results = gradients(_version1(**geometry), [input, offset, weight], grad_output)
    for target, gradient in zip((grad_input, grad_offset), results):
        target.copy_(gradient)
    columns.resize_(weight.shape).copy_(results[2])


def deform_conv_backward_parameters(
    input: Tensor,
    offset: Tensor,
    grad_output: Tensor,
    grad_weight: Tensor,
    columns: Tensor,
    ones: Tensor,
    **geometry: int,
) -> None:
    """Gradient of the weight, which :func:`deform_conv_backward_input` has left if it was called."""
    if not columns.numel():
        weight = grad_weight  # the op is linear in it
        columns = gradients(
            lambda weight: _version1(**geometry)(input, offset, weight), [weight], grad_output
        )[0]
    grad_weight.copy_(columns)


def _version2(
    stride_h: int, stride_w: int, pad_h: int, pad_w: int, dilation_h: int, dilation_w: int, **_: Any
) -> Callable:
    return _deform_conv((stride_h, stride_w), (pad_h, pad_w), (dilation_h, dilation_w))


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
    """Modulated deformable convolution, https://arxiv.org/abs/1811.11168, into ``output`` (B, D, h, w).

    ``mask`` is (B, deformable groups * kh * kw, h, w); the rest is as in :func:`deform_conv_forward`.
    """
    op = _version2(**geometry)
    output.copy_(op(input, offset, weight, mask, bias if with_bias else None))


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
    """Gradients of :func:`modulated_deform_conv_forward`, each into its tensor."""
    inputs = [input, offset, weight, mask] + [bias] * with_bias
    results = grad_input, grad_offset, grad_weight, grad_mask, grad_bias
    for target, gradient in zip(results, gradients(_version2(**geometry), inputs, grad_output)):
        target.copy_(gradient)


def _has_kernels(value: Tensor) -> bool:
    """Whether the fused kernels take a tensor. The last bits of gradients depend on the order of threads."""
    return (
        value.is_cuda and find_spec('triton') is not None and not torch.are_deterministic_algorithms_enabled()
    )


def attend_to_level(value: Tensor, height: int, width: int, locations: Tensor, weights: Tensor) -> Tensor:
    """Deformable attention to one level: (B, H * W, heads, D), (B, Q, heads, P, 2) -> (B, Q, heads * D)."""
    batch, _, heads, depth = value.shape
    _, queries, _, points, _ = locations.shape
    maps = value.permute(0, 2, 3, 1).reshape(batch * heads, depth, height, width)
    grid = (2 * locations - 1).transpose(1, 2).reshape(batch * heads, queries, points, 2)
    weights = weights.transpose(1, 2).reshape(batch * heads, 1, queries, points)
    samples = F.grid_sample(maps, grid, align_corners=False)  # (B * heads, D, Q, P)
    return (samples * weights).sum(-1).view(batch, heads * depth, queries).transpose(1, 2)


def _levels(
    value: Tensor, spatial_shapes: Tensor, locations: Tensor, weights: Tensor
) -> Iterator[tuple[int, int, tuple[Tensor, Tensor, Tensor]]]:
    """Height and width of each level, and what of the tensors belongs to it, in at least float32."""
    value, locations, weights = upcast(value, locations, weights)
    shapes = spatial_shapes.tolist()
    values = value.split([height * width for height, width in shapes], dim=1)
    for (height, width), *tensors in zip(shapes, values, locations.unbind(3), weights.unbind(3)):
        yield height, width, tuple(tensors)


def ms_deform_attn_forward(
    value: Tensor,
    value_spatial_shapes: Tensor,
    value_level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    im2col_step: int,
) -> Tensor:
    """Multi-scale deformable attention, https://arxiv.org/abs/2010.04159 (equation 3).

    One level after the other, so that the samples of one only are in memory at a time.

    Args:
        value: (B, S, heads, D), S being the sum of all levels' sizes.
        value_spatial_shapes: (L, 2), each level's height and width.
        value_level_start_index: (L,), each level's first place in S.
        sampling_locations: (B, Q, heads, L, P, 2), x and y from 0 to 1; beyond that the value is 0.
        attention_weights: (B, Q, heads, L, P).
        im2col_step: Not used.

    Returns:
        (B, Q, heads * D).
    """
    if _has_kernels(value):
        from .deformable_attention_kernels import forward

        return forward(
            value, value_spatial_shapes, value_level_start_index, sampling_locations, attention_weights
        )
    levels = _levels(value, value_spatial_shapes, sampling_locations, attention_weights)
    output = sum(attend_to_level(of_level, *size, *rest) for *size, (of_level, *rest) in levels)
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
    """Gradients of :func:`ms_deform_attn_forward`, each into its tensor."""
    if _has_kernels(value):
        from .deformable_attention_kernels import backward

        results = backward(
            value,
            value_spatial_shapes,
            value_level_start_index,
            sampling_locations,
            attention_weights,
            grad_output,
        )
    else:
        each = []
        for height, width, tensors in _levels(
            value, value_spatial_shapes, sampling_locations, attention_weights
        ):

            def op(value: Tensor, *rest: Tensor, size: tuple[int, int] = (height, width)) -> Tensor:
                return attend_to_level(value, *size, *rest)

            each.append(gradients(op, tensors, grad_output))
        values, locations, weights = zip(*each)
        results = torch.cat(values, 1), torch.stack(locations, 3), torch.stack(weights, 3)
    for target, gradient in zip((grad_value, grad_sampling_loc, grad_attn_weight), results):
        target.copy_(gradient)
