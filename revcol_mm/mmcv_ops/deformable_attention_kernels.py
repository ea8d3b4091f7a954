"""Multi-scale deformable attention in two Triton kernels for CUDA: one forward, one backward.

Equation 3 of Deformable DETR (https://arxiv.org/abs/2010.04159), for every image b, query q and head h::

    output[b, q, h] = sum over l, p of weights[b, q, h, l, p] * value_l[b, h](locations[b, q, h, l, p])

where ``value_l(x, y)`` interpolates level ``l`` bilinearly, as :func:`torch.nn.functional.grid_sample` does
with zero padding and ``align_corners=False``. Samples are added up as they are read and never stored.

Letters: ``B`` images, ``Q`` queries, ``H`` heads of ``D`` channels, ``L`` levels with ``P`` points each, and
``S`` pixels of all levels together.

Shapes are not checked. The values of ``spatial_shapes`` are read on the GPU only, because reading them on the
CPU would wait for the GPU.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor


def forward(
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    """Compute multi-scale deformable attention.

    Args:
        value: ``(B, S, H, D)``, of any floating-point dtype, like locations and weights.
        spatial_shapes: Height and width of each level, ``(L, 2)``, integers; the levels have ``S`` pixels.
        level_start_index: Index in ``S`` of each level's first pixel, ``(L,)``, integers.
        sampling_locations: ``(B, Q, H, L, P, 2)``, x and y, from 0 to 1 across the image. The value outside
            the image, and at NaN, is 0.
        attention_weights: ``(B, Q, H, L, P)``.

    Returns:
        ``(B, Q, H * D)`` in the dtype of ``value``; computed in float32, or in float64 if any input is.
    """
    batch_size, _, num_heads, dim = value.shape
    output = value.new_empty(batch_size, sampling_locations.shape[1], num_heads * dim)
    inputs = (value, spatial_shapes, level_start_index, sampling_locations, attention_weights)
    _launch(_forward_kernel, inputs, (output,), num_warps=4)
    return output


def backward(
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    grad_output: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the gradients of :func:`forward` from its arguments and ``grad_output`` ``(B, Q, H * D)``.

    The interpolated value has no derivative at the centres of pixels; there the derivative towards greater
    x and y is used, as in ``grid_sample``.

    Returns:
        Gradients of ``value``, ``sampling_locations`` and ``attention_weights``, in their shapes and dtypes.

    Note:
        The gradient of ``value`` is not deterministic in its last bits: many queries add to the gradient of
        one pixel with atomic additions in any order. All other results are deterministic. Do not call this
        function if :func:`torch.are_deterministic_algorithms_enabled`.
    """
    inputs = (value, spatial_shapes, level_start_index, sampling_locations, attention_weights, grad_output)
    grad_value = torch.zeros(value.shape, dtype=_compute_dtype(inputs), device=value.device)
    grad_locations = torch.empty_like(sampling_locations, memory_format=torch.contiguous_format)
    grad_weights = torch.empty_like(attention_weights, memory_format=torch.contiguous_format)
    # Sums over channels need communication between threads, which is cheapest within one warp.
    _launch(_backward_kernel, inputs, (grad_value, grad_locations, grad_weights), num_warps=1)
    return grad_value.to(value.dtype), grad_locations, grad_weights


def _compute_dtype(inputs: tuple[Tensor, ...]) -> torch.dtype:
    return torch.float64 if any(x.dtype == torch.float64 for x in inputs) else torch.float32


def _launch(
    kernel: triton.JITFunction, inputs: tuple[Tensor, ...], outputs: tuple[Tensor, ...], num_warps: int
) -> None:
    """Launch a kernel. A row is a pair of a query and a head; each program takes some rows of one image."""
    value, _, _, locations, *_ = inputs
    batch_size, num_pixels, num_heads, dim = value.shape
    _, num_queries, _, num_levels, num_points, _ = locations.shape
    num_rows = num_queries * num_heads
    if batch_size * num_rows * dim == 0:
        return
    # So many rows that each thread reads 16 bytes at once and neighbouring threads read the rest of the row.
    block_dim = triton.next_power_of_2(dim)
    block_rows = max(1, num_warps * 32 * 16 // value.element_size() // block_dim)
    # Use the first axis of the grid only: the other two are limited to 65535 programs.
    grid = (batch_size * triton.cdiv(num_rows, block_rows),)
    with torch.cuda.device_of(value):
        kernel[grid](
            *(x.contiguous() for x in inputs),
            *outputs,
            num_pixels,
            num_rows,
            NUM_HEADS=num_heads,
            DIM=dim,
            NUM_LEVELS=num_levels,
            NUM_POINTS=num_points,
            COMPUTE=tl.float64 if _compute_dtype(inputs) == torch.float64 else tl.float32,
            BLOCK_ROWS=block_rows,
            BLOCK_DIM=block_dim,
            num_warps=num_warps,
        )


# The image size and (with denoising) the number of queries change at every step. Without `do_not_specialize`
# Triton would compile again whenever one of them becomes 1 or a multiple of 16.
@triton.jit(do_not_specialize=['num_pixels', 'num_rows'])
def _forward_kernel(
    value,
    spatial_shapes,
    level_start_index,
    locations,
    weights,
    output,
    num_pixels,
    num_rows,
    NUM_HEADS: tl.constexpr,
    DIM: tl.constexpr,
    NUM_LEVELS: tl.constexpr,
    NUM_POINTS: tl.constexpr,
    COMPUTE: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
):
    image, row, has_row = _rows_of_program(num_rows, BLOCK_ROWS)
    channel = tl.arange(0, BLOCK_DIM)[None, :]
    has_channel = channel < DIM
    row_values = value + image * num_pixels * (NUM_HEADS * DIM) + (row % NUM_HEADS * DIM)[:, None] + channel
    row += image * num_rows
    total = tl.zeros((BLOCK_ROWS, BLOCK_DIM), COMPUTE)
    for level in range(NUM_LEVELS):
        height, width, start = _load_level(spatial_shapes, level_start_index, level)
        for point in tl.range(NUM_POINTS, loop_unroll_factor=4):  # keeps the reads of four points in flight
            sample = (row * NUM_LEVELS + level) * NUM_POINTS + point
            weight = tl.load(weights + sample, has_row, 0).to(COMPUTE)
            left, top, x_share, y_share, is_near = _locate(locations, sample, has_row, height, width, COMPUTE)
            for corner in tl.static_range(4):
                pixel, is_inside, x_weight, y_weight = _corner(
                    left, top, x_share, y_share, is_near, height, width, corner % 2, corner // 2
                )
                pixel_values = row_values + ((start + pixel) * (NUM_HEADS * DIM))[:, None]
                corner_value = tl.load(pixel_values, is_inside[:, None] & has_channel, 0).to(COMPUTE)
                total += (weight * x_weight * y_weight)[:, None] * corner_value
    tl.store(output + (row * DIM)[:, None] + channel, total, has_row[:, None] & has_channel)


@triton.jit(do_not_specialize=['num_pixels', 'num_rows'])
def _backward_kernel(
    value,
    spatial_shapes,
    level_start_index,
    locations,
    weights,
    grad_output,
    grad_value,
    grad_locations,
    grad_weights,
    num_pixels,
    num_rows,
    NUM_HEADS: tl.constexpr,
    DIM: tl.constexpr,
    NUM_LEVELS: tl.constexpr,
    NUM_POINTS: tl.constexpr,
    COMPUTE: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
):
    image, row, has_row = _rows_of_program(num_rows, BLOCK_ROWS)
    channel = tl.arange(0, BLOCK_DIM)[None, :]
    has_channel = channel < DIM
    row_offset = image * num_pixels * (NUM_HEADS * DIM) + (row % NUM_HEADS * DIM)[:, None] + channel
    row += image * num_rows
    row_grad = grad_output + (row * DIM)[:, None] + channel
    grad = tl.load(row_grad, has_row[:, None] & has_channel, 0).to(COMPUTE)
    for level in range(NUM_LEVELS):
        height, width, start = _load_level(spatial_shapes, level_start_index, level)
        for point in range(NUM_POINTS):
            sample = (row * NUM_LEVELS + level) * NUM_POINTS + point
            weight = tl.load(weights + sample, has_row, 0).to(COMPUTE)
            left, top, x_share, y_share, is_near = _locate(locations, sample, has_row, height, width, COMPUTE)
            grad_x = tl.zeros((BLOCK_ROWS,), COMPUTE)
            grad_y = tl.zeros((BLOCK_ROWS,), COMPUTE)
            grad_weight = tl.zeros((BLOCK_ROWS,), COMPUTE)
            for corner in tl.static_range(4):
                pixel, is_inside, x_weight, y_weight = _corner(
                    left, top, x_share, y_share, is_near, height, width, corner % 2, corner // 2
                )
                offset = row_offset + ((start + pixel) * (NUM_HEADS * DIM))[:, None]
                corner_value = tl.load(value + offset, is_inside[:, None] & has_channel, 0).to(COMPUTE)
                product = tl.sum(grad * corner_value, 1)
                grad_x += y_weight * product * (corner % 2 * 2 - 1)
                grad_y += x_weight * product * (corner // 2 * 2 - 1)
                grad_weight += x_weight * y_weight * product
            # A loop of its own: the compiler cannot move a read above an atomic addition, so that all reads
            # of the sample have to come first.
            for corner in tl.static_range(4):
                pixel, is_inside, x_weight, y_weight = _corner(
                    left, top, x_share, y_share, is_near, height, width, corner % 2, corner // 2
                )
                offset = row_offset + ((start + pixel) * (NUM_HEADS * DIM))[:, None]
                grad_corner = (weight * x_weight * y_weight)[:, None] * grad
                mask = is_inside[:, None] & has_channel
                tl.atomic_add(grad_value + offset, grad_corner, mask, sem='relaxed')
            tl.store(grad_locations + sample * 2, weight * width * grad_x, has_row)
            tl.store(grad_locations + sample * 2 + 1, weight * height * grad_y, has_row)
            tl.store(grad_weights + sample, grad_weight, has_row)


@triton.jit
def _rows_of_program(num_rows, BLOCK_ROWS: tl.constexpr):
    """Return the image and rows of this program (int64, as offsets exceed int32) and a mask of valid rows."""
    num_blocks = tl.cdiv(num_rows, BLOCK_ROWS)
    image = tl.program_id(0) // num_blocks
    row = tl.program_id(0) % num_blocks * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    return image.to(tl.int64), row.to(tl.int64), row < num_rows


@triton.jit
def _load_level(spatial_shapes, level_start_index, level):
    """Return height, width and index of the first pixel of a level."""
    height = tl.load(spatial_shapes + level * 2).to(tl.int32)
    width = tl.load(spatial_shapes + level * 2 + 1).to(tl.int32)
    return height, width, tl.load(level_start_index + level).to(tl.int64)


@triton.jit
def _locate(locations, sample, has_row, height, width, COMPUTE: tl.constexpr):
    """Return the pixel to the upper left of each location, its distance, and whether any pixel is near."""
    # The centre of pixel i is at i + 0.5.
    x = tl.load(locations + sample * 2, has_row, 0).to(COMPUTE) * width - 0.5
    y = tl.load(locations + sample * 2 + 1, has_row, 0).to(COMPUTE) * height - 0.5
    is_near = has_row & (x >= -1) & (x < width) & (y >= -1) & (y < height)  # False for NaN
    x = tl.where(is_near, x, 0)  # may be too large for the conversion to an integer
    y = tl.where(is_near, y, 0)
    left = tl.floor(x)
    top = tl.floor(y)
    return left.to(tl.int32), top.to(tl.int32), x - left, y - top, is_near


@triton.jit
def _corner(left, top, x_share, y_share, is_near, height, width, RIGHT: tl.constexpr, LOWER: tl.constexpr):
    """Return index, existence, and weights along x and y of one of the four pixels around each location."""
    x = left + RIGHT
    y = top + LOWER
    is_inside = is_near & (x >= 0) & (x < width) & (y >= 0) & (y < height)
    x_weight = x_share if RIGHT else 1 - x_share
    y_weight = y_share if LOWER else 1 - y_share
    return y * width + x, is_inside, x_weight, y_weight
