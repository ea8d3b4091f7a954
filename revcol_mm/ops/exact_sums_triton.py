"""Fused Triton kernels for :mod:`.exact_sums` on CUDA, with bitwise the same results as the torch version.

In float32 they move 20 bytes per element in forward and 28 in backward, plus the codes.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK_SIZE = 512  # code bytes (or int16 words) per program; each holds the codes of 8 // width elements


def couple(
    residual: Tensor, feature: Tensor, low: Tensor, alpha: Tensor, offset: Tensor, width: int
) -> tuple[Tensor, ...]:
    """Fused version of :func:`.exact_sums.couple`."""
    grid, sizes, constants = _layout(feature, width)
    new_feature, new_low = torch.empty_like(feature), torch.empty_like(low)
    code = feature.new_empty(sizes[2], sizes[1], dtype=torch.uint8 if width <= 8 else torch.int16)
    checksums = offset.new_empty(grid, dtype=torch.int64)
    inputs = residual, feature, low, alpha.contiguous(), offset
    with torch.cuda.device_of(feature):
        _couple_kernel[grid](*inputs, new_feature, new_low, code, checksums, *sizes, **constants)
    return new_feature, new_low, checksums.sum(), code


def uncouple(
    residual: Tensor,
    feature: Tensor,
    low: Tensor,
    code: Tensor,
    alpha: Tensor,
    offset: Tensor,
    width: int,
    grad: Tensor,
) -> tuple[Tensor, ...]:
    """Fused version of :func:`.exact_sums.uncouple`."""
    grid, sizes, constants = _layout(feature, width)
    new_feature, new_low, new_grad = torch.empty_like(feature), torch.empty_like(low), torch.empty_like(grad)
    checksums = offset.new_empty(grid, dtype=torch.int64)
    has_grad = grad.numel() > 0
    alpha_grads = torch.zeros(grid[0] if has_grad else 0, sizes[1], dtype=torch.float32, device=grad.device)
    inverse = alpha.double().reciprocal()  # once per channel: float64 division is slow on consumer GPUs
    inputs = residual, feature, low, code, inverse, alpha.contiguous(), offset, grad
    outputs = new_feature, new_low, new_grad, alpha_grads, checksums
    with torch.cuda.device_of(feature):
        _uncouple_kernel[grid](*inputs, *outputs, *sizes, HAS_GRAD=has_grad, **constants)
    return new_feature, new_low, checksums.sum(), new_grad, alpha_grads.sum(0).to(alpha.dtype)


def _layout(feature: Tensor, width: int) -> tuple[tuple[int, int], tuple[int, int, int], dict[str, int]]:
    """Return the grid, the sizes (rows, channels, rows of the code), and the constants of the kernels."""
    (num_rows, num_channels), per_word = feature.shape, max(8 // width, 1)
    num_words = triton.cdiv(num_rows, per_word)
    channels = min(triton.next_power_of_2(num_channels), 128)
    rows = BLOCK_SIZE // channels
    constants = dict(WIDTH=width, PER_WORD=per_word, BLOCK_ROWS=rows, BLOCK_CHANNELS=channels)
    grid = triton.cdiv(num_words, rows), triton.cdiv(num_channels, channels)
    # Fused multiply-add rounds once, but torch rounds after the multiplication and after the addition.
    return grid, (num_rows, num_channels, num_words), constants | dict(enable_fp_fusion=False)


# The image size may change at every step. Without `do_not_specialize` Triton would compile again whenever one
# of these becomes 1 or a multiple of 16.
# fmt: off
@triton.jit(do_not_specialize=['num_rows', 'num_words'])
def _couple_kernel(
    residual, feature, low, alpha, offset, new_feature, new_low, code, checksums, num_rows, num_channels,
    num_words, WIDTH: tl.constexpr, PER_WORD: tl.constexpr, BLOCK_ROWS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
):
    # fmt: on
    word, channel, has_word, has_channel = _block(num_words, num_channels, BLOCK_ROWS, BLOCK_CHANNELS)
    alpha_ = tl.load(alpha + channel, has_channel, 0.0).to(tl.float64)
    offset_ = tl.load(offset)
    codes = tl.zeros([BLOCK_ROWS, BLOCK_CHANNELS], tl.int32)
    checksum = tl.zeros([BLOCK_ROWS, BLOCK_CHANNELS], tl.int64)
    for part in tl.static_range(PER_WORD):
        row = word + part * num_words
        at, mask = row.to(tl.int64) * num_channels + channel, has_word & has_channel & (row < num_rows)
        values = _load(feature, at, mask) + _load(low, at, mask) + offset_
        codes |= (values.to(tl.int64, bitcast=True) & ((1 << WIDTH) - 1)).to(tl.int32) << (part * WIDTH)
        values = (values - offset_) * alpha_
        values = values + _load(residual, at, mask) + offset_
        checksum += _squares(values, mask)
        _store(values - offset_, new_feature, new_low, at, mask)
    at, mask = word.to(tl.int64) * num_channels + channel, has_word & has_channel
    tl.store(code + at, codes.to(code.dtype.element_ty), mask)
    program = tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)
    tl.store(checksums + program, tl.sum(tl.sum(checksum, 1), 0))


# fmt: off
@triton.jit(do_not_specialize=['num_rows', 'num_words'])
def _uncouple_kernel(
    residual, feature, low, code, inverse, alpha, offset, grad, new_feature, new_low, new_grad, alpha_grads,
    checksums, num_rows, num_channels, num_words, WIDTH: tl.constexpr, PER_WORD: tl.constexpr,
    HAS_GRAD: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr,
):
    # fmt: on
    word, channel, has_word, has_channel = _block(num_words, num_channels, BLOCK_ROWS, BLOCK_CHANNELS)
    inverse_ = tl.load(inverse + channel, has_channel, 0.0)
    alpha_ = tl.load(alpha + channel, has_channel, 0.0).to(tl.float32)
    offset_ = tl.load(offset)
    step = (offset_.to(tl.int64, bitcast=True) + 1).to(tl.float64, bitcast=True) - offset_
    at, mask = word.to(tl.int64) * num_channels + channel, has_word & has_channel
    codes = tl.load(code + at, mask, 0).to(tl.int32)
    checksum = tl.zeros([BLOCK_ROWS, BLOCK_CHANNELS], tl.int64)
    alpha_grad = tl.zeros([BLOCK_ROWS, BLOCK_CHANNELS], tl.float32)
    for part in tl.static_range(PER_WORD):
        row = word + part * num_words
        at, mask = row.to(tl.int64) * num_channels + channel, has_word & has_channel & (row < num_rows)
        values = _load(feature, at, mask) + _load(low, at, mask) - _load(residual, at, mask)
        values = values * inverse_ + offset_
        bits = (values.to(tl.int64, bitcast=True) & ((1 << WIDTH) - 1)).to(tl.int32)
        num_steps = (codes >> (part * WIDTH)) - bits + (1 << (WIDTH - 1))
        num_steps = (num_steps & ((1 << WIDTH) - 1)) - (1 << (WIDTH - 1))
        values += num_steps.to(tl.float64) * step
        checksum += _squares(values, mask)
        before = _store(values - offset_, new_feature, new_low, at, mask)
        if HAS_GRAD:
            grad_ = tl.load(grad + at, mask, 0.0).to(tl.float32)
            tl.store(new_grad + at, (grad_ * alpha_).to(new_grad.dtype.element_ty), mask)
            alpha_grad += tl.where(mask, grad_ * before.to(tl.float32), 0.0)
    if HAS_GRAD:
        total = tl.sum(alpha_grad, 0)[None, :]
        at = tl.program_id(0) * num_channels + channel
        tl.store(alpha_grads + at, total, has_channel)
    program = tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)
    tl.store(checksums + program, tl.sum(tl.sum(checksum, 1), 0))


@triton.jit
def _block(num_words, num_channels, BLOCK_ROWS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr):
    """Return the code rows and channels of this program, and masks of those within bounds."""
    word = (tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS))[:, None]
    channel = (tl.program_id(1) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS))[None, :]
    return word, channel, word < num_words, channel < num_channels


@triton.jit
def _load(tensor, at, mask):
    """Load as float64, by way of float32: GPUs have no direct conversion from 16 bits."""
    return tl.load(tensor + at, mask, 0.0).to(tl.float32).to(tl.float64)


@triton.jit
def _squares(values, mask):
    """Return the squared bit patterns of the values, for the checksum."""
    bits = values.to(tl.int64, bitcast=True)
    return tl.where(mask, bits * bits, 0)


@triton.jit
def _store(values, feature, low, at, mask):
    """Write the feature and the low part of the values; return the feature."""
    rounded = values.to(tl.float32).to(feature.dtype.element_ty)  # round by way of float32, as torch does
    tl.store(feature + at, rounded, mask)
    tl.store(low + at, (values - rounded.to(tl.float32).to(tl.float64)).to(tl.float32), mask)
    return rounded
