"""Exactly invertible arithmetic for ``c' = F + alpha * c`` on matrices.

Multiplying by alpha loses bits: one per element at alpha = 0.5. Therefore all values of a level are
multiples of a fixed step ``q``, stored as two numbers: the *feature*, the value rounded to the level's dtype,
and *low*, the remainder. ``c' = round(F + alpha * c)`` is computed in float64 and rounded to a multiple of
``q``. Given ``c'``, ``F`` and alpha, the old ``c`` is known up to ``1 / (2 |alpha|)`` steps, so the low bits
of ``c / q`` (2 bits at alpha = 0.5) determine it exactly. These bits are stored as the *code*. Maclaurin et
al. do the same for the momentum of SGD ("Gradient-based Hyperparameter Optimization through Reversible
Learning", arXiv 1502.03492, section 2.2).

Letters: matrices are (P, C), with P positions and C channels; every channel has its own alpha.
"""

from types import ModuleType
from typing import Iterator, NamedTuple

import torch
from torch import Tensor

# The step is 2^-36 of a level's largest value in the first link: 12 bits finer than float32. That of 16-bit
# dtypes is 13 bits finer than them. Values may then grow by about 2^12 before float64 (53 bits, some of which
# rounding errors need) or ``low`` can no longer hold them exactly. Levels in float64 may grow by about 2^8.
STEP_EXPONENTS = {torch.float64: -40, torch.float32: -36, torch.float16: -24, torch.bfloat16: -21}
WIDTHS = (2, 4, 8, 16)  # possible code widths, in bits per element
CHUNK = 2**17  # elements per chunk on a CPU: fits into caches, and is enough work for several threads


class State(NamedTuple):
    """Exact values of a level.

    Args:
        feature: The values rounded to the level's dtype. Channels are the last dimension in memory.
        low: The remainder, (P, C), float32.
        checksum: Sum of the squared bit patterns of all values, independent of the order; a scalar int64.
        offset: Offset of the level's grid, see :func:`grid_offset`; a scalar float64.
    """

    feature: Tensor
    low: Tensor
    checksum: Tensor
    offset: Tensor


def grid_offset(largest: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the offset ``o`` for which ``(v + o) - o`` in float64 rounds ``v`` to the grid of a level.

    Between ``o * 2/3`` and ``o * 4/3``, adjacent float64 numbers differ by ``2^-52 * o * 2/3``, which is the
    step. Their bits, read as integers, therefore count steps.

    Args:
        largest: The level's largest absolute value in the first link, a scalar float64.
        dtype: Dtype of the level's features.
    """
    exponent = largest.clamp(min=1e-30).log2().ceil() + STEP_EXPONENTS[dtype]
    return 1.5 * torch.exp2(exponent + 52)


def couple(
    residual: Tensor, feature: Tensor, low: Tensor, alpha: Tensor, offset: Tensor, width: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Compute ``round(F + alpha * c)``, and the code from which :func:`uncouple` recovers ``c``.

    Args:
        residual: ``F``, (P, C).
        feature, low: The state of ``c``, (P, C) each.
        alpha: (C,).
        offset: Offset of the level's grid, see :func:`grid_offset`.
        width: Code width in bits, one of ``WIDTHS``.

    Returns:
        Feature, low and checksum of the new state, and the code (S, C): the lowest ``width`` bits of each old
        value, uint8, or int16 if ``width`` is 16. One byte holds positions p, p + S, p + 2S and so on.
    """
    per_word = max(8 // width, 1)
    num_words = -(-len(feature) // per_word)
    code = feature.new_zeros(num_words, feature.shape[1], dtype=torch.uint8 if width <= 8 else torch.int16)
    new_feature, new_low = torch.empty_like(feature), torch.empty_like(low)
    checksum, alpha = offset.new_zeros((), dtype=torch.int64), alpha.double()
    for words, part, rows in _chunks(feature, per_word):
        values = join(feature[rows], low[rows]).add_(offset)
        bits = values.view(torch.int64).to(code.dtype)
        code[words] |= bits if width >= 8 else bits.bitwise_and_(2**width - 1) << part * width
        values.sub_(offset).mul_(alpha).add_(residual[rows]).add_(offset)
        checksum += compute_checksum(values)
        split_(values.sub_(offset), new_feature[rows], new_low[rows])
    return new_feature, new_low, checksum, code


def uncouple(
    residual: Tensor,
    feature: Tensor,
    low: Tensor,
    code: Tensor,
    alpha: Tensor,
    offset: Tensor,
    width: int,
    grad: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Invert :func:`couple`, and compute the gradients with respect to ``c`` and alpha.

    Args:
        residual: The same ``F`` as in :func:`couple`, (P, C).
        feature, low: The state that :func:`couple` returned, (P, C) each.
        code: The code that it returned.
        alpha, offset, width: The same values as in :func:`couple`.
        grad: Gradient of ``feature``, (P, C); an empty tensor (0,) if there is none.

    Returns:
        Feature, low and checksum of the old state, the gradient of the old feature, (P, C) or (0,), and the
        gradient of alpha, (C,).
    """
    per_word = max(8 // width, 1)
    new_feature, new_low, new_grad = (torch.empty_like(tensor) for tensor in (feature, low, grad))
    grad_alpha = torch.zeros_like(alpha, dtype=torch.promote_types(alpha.dtype, torch.float32))
    checksum, inverse = offset.new_zeros((), dtype=torch.int64), alpha.double().reciprocal()
    step, half = (offset.view(torch.int64) + 1).view(torch.float64) - offset, 2 ** (width - 1)
    for words, part, rows in _chunks(feature, per_word):
        values = join(feature[rows], low[rows]).sub_(residual[rows]).mul_(inverse).add_(offset)
        wanted = code[words] >> part * width if width < 8 else code[words]
        num_steps = wanted - values.view(torch.int64).to(code.dtype)  # wraps around
        if width < 16:
            num_steps = num_steps.add_(half).bitwise_and_(2**width - 1).view(torch.int8).sub_(half)
        values.addcmul_(num_steps.double(), step)
        checksum += compute_checksum(values)
        split_(values.sub_(offset), new_feature[rows], new_low[rows])
        if grad.numel():
            torch.mul(grad[rows], alpha, out=new_grad[rows])
            grad_alpha += (grad[rows].to(grad_alpha.dtype) * new_feature[rows]).sum(0)
    return new_feature, new_low, checksum, new_grad, grad_alpha.to(alpha.dtype)


couple_op = torch.library.custom_op('revcol::couple', couple, mutates_args=())
uncouple_op = torch.library.custom_op('revcol::uncouple', uncouple, mutates_args=())


@couple_op.register_fake
def _(residual, feature, low, alpha, offset, width):
    num_words = -(-len(feature) // max(8 // width, 1))
    code = feature.new_empty(num_words, feature.shape[1], dtype=torch.uint8 if width <= 8 else torch.int16)
    return torch.empty_like(feature), torch.empty_like(low), offset.new_empty((), dtype=torch.int64), code


@uncouple_op.register_fake
def _(residual, feature, low, code, alpha, offset, width, grad):
    checksum = offset.new_empty((), dtype=torch.int64)
    return (*map(torch.empty_like, (feature, low)), checksum, *map(torch.empty_like, (grad, alpha)))


@couple_op.register_kernel('cuda')
def _(residual, feature, *args):
    return getattr(_kernels(feature), 'couple', couple)(residual, feature, *args)


@uncouple_op.register_kernel('cuda')
def _(residual, feature, *args):
    return getattr(_kernels(feature), 'uncouple', uncouple)(residual, feature, *args)


def _kernels(feature: Tensor) -> ModuleType | None:
    """Return the module of fused kernels; None without Triton, or for float64, which they do not support."""
    try:
        from . import exact_sums_triton
    except ImportError:
        return None
    return exact_sums_triton if feature.dtype != torch.float64 else None


def _chunks(feature: Tensor, per_word: int) -> Iterator[tuple[slice, int, slice]]:
    """Split a matrix into chunks; yield rows of the code, the index within its words, and matrix rows."""
    num_rows, num_channels = feature.shape
    num_words = -(-num_rows // per_word)
    size = max(CHUNK // max(num_channels, 1), 1) if feature.device.type == 'cpu' else max(num_words, 1)
    for first in range(0, num_words, size):
        for part in range(per_word):
            before = part * num_words
            rows = slice(before + first, min(before + min(first + size, num_words), num_rows))
            if rows.start < rows.stop:
                yield slice(first, first + rows.stop - rows.start), part, rows


def join(feature: Tensor, low: Tensor) -> Tensor:
    """Return the exact values ``feature + low``, in float64."""
    return feature.to(torch.float64, copy=True).add_(low)


def split_(values: Tensor, feature: Tensor, low: Tensor) -> None:
    """Invert :func:`join`: write ``feature`` and ``low``. Overwrites ``values``."""
    feature.copy_(values)
    low.copy_(values.sub_(feature))


def compute_checksum(values: Tensor) -> Tensor:
    """Return the checksum of a :class:`State`; ``values`` are float64, with the offset added."""
    bits = values.view(torch.int64)
    return (bits * bits).sum()
