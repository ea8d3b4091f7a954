"""Keeping the few bits that multiplying by alpha loses, so that a coupling can be undone exactly.

The state ``c`` of a reversible chain is held in float64 on a fixed grid, as multiples of a step q, and a
coupling computes ``c' = round(F + alpha * c)`` on it. From ``c'``, ``F`` and alpha the old value is known
to within ``1 / (2 |alpha|)`` steps; the low bits of ``c / q``, two of them at alpha 0.5, tell which multiple
it was. Maclaurin et al. do the same for the momentum of SGD ("Gradient-based Hyperparameter Optimization
through Reversible Learning", arXiv 1502.03492, section 2.2).
"""

from typing import NamedTuple, Sequence

import torch
from torch import Tensor

# The step is 2^-36 of the largest value of the level in the first link: 12 bits finer than float32, while
# values may grow 2^15-fold before float64's 53 bits cannot hold the grid. For float64 features: finer.
STEP_EXPONENTS = {torch.float64: -44}
STEP_EXPONENT = -36
WIDTHS = (2, 4, 8, 16)  # bits of a code


def grid_offset(state: Tensor, dtype: torch.dtype) -> Tensor:
    """The number o for which ``(v + o) - o`` rounds v to the grid.

    In float64 the numbers from o * 2/3 to o * 4/3 are the multiples of 2^-52 * o * 2/3, which is the step,
    and their bits, read as an integer, count steps.

    Args:
        state: A level's state in the first link.
        dtype: Type of the features that it is rounded to.
    """
    exponent = state.abs().amax().clamp(min=1e-30).log2().ceil() + STEP_EXPONENTS.get(dtype, STEP_EXPONENT)
    return 1.5 * torch.exp2(exponent + 52)


def low_words(on_grid: Tensor) -> Tensor:
    """The lower 32 bits of a state plus offset: with the state rounded to float32, all of it."""
    counts = on_grid.view(torch.int64)
    return counts.to(torch.int32)


def restore_words_(on_grid: Tensor, words: Tensor) -> None:
    """Move a state plus offset to the nearest grid point with these low words, in place."""
    counts = on_grid.view(torch.int64)
    counts += words - counts.to(torch.int32)  # wraps around


class CodePlan(NamedTuple):
    """How many bits of each channel are kept when a coupling multiplies by alpha.

    Args:
        width: Bits of every channel's code.
        wider: Channels whose alpha is so small that they need more: pairs of a width and indices.
        dim: The dimension of channels; None if alpha has no single one.
    """

    width: int
    wider: list[tuple[int, Tensor]]
    dim: int | None


def plan_codes(alpha: Tensor) -> CodePlan:
    """Choose the width of codes from a coupling's alpha.

    Raises:
        ValueError: If an alpha is too small for 16 bits, below 1.6e-5.
    """
    dims = [dim for dim, size in enumerate(alpha.shape) if size > 1]
    candidates = alpha.detach().abs().double().flatten().cpu().reciprocal() + 1.5
    dim = dims[0] - alpha.ndim if len(dims) == 1 else None  # from the right, as tensors broadcast
    if dim is None:
        candidates = candidates.amax(0, keepdim=True)
    limits = torch.tensor([2.0**width for width in WIDTHS], dtype=torch.float64)
    classes = torch.searchsorted(limits, candidates)
    if classes.amax() == len(WIDTHS):
        raise ValueError(f'|alpha| of {alpha.detach().abs().min().item():.1e} is too small to be undone')
    base = int(classes.amin())
    wider = [
        (WIDTHS[i], (classes == i).nonzero().flatten().to(alpha.device))
        for i in range(base + 1, len(WIDTHS))
        if (classes == i).any()
    ]
    return CodePlan(WIDTHS[base], wider, dim)


class Codes:
    """Low bits of a level's state, packed.

    Args:
        on_grid: State plus offset, float64.
        plan: How many bits of each channel.
    """

    def __init__(self, on_grid: Tensor, plan: CodePlan) -> None:
        self.plan = plan
        counts = on_grid.view(torch.int64)
        self.packed = [
            _pack(counts if indices is None else counts.index_select(plan.dim, indices), width)
            for width, indices in self._groups()
        ]

    def _groups(self) -> Sequence[tuple[int, Tensor | None]]:
        # The wider codes first: once they are applied, the narrow code of those channels agrees.
        return [*self.plan.wider, (self.plan.width, None)]

    @property
    def nbytes(self) -> int:
        return sum(packed.nbytes for packed in self.packed)

    def restore_(self, on_grid: Tensor) -> None:
        """Move a state plus offset to the nearest grid point with these low bits, in place."""
        counts = on_grid.view(torch.int64)
        for (width, indices), packed in zip(self._groups(), self.packed):
            if indices is None:
                counts += _correction(packed, counts, width)
            else:
                near = counts.index_select(self.plan.dim, indices)
                counts.index_copy_(self.plan.dim, indices, near + _correction(packed, near, width))


def _flat(tensor: Tensor) -> Tensor:
    """A dense tensor's elements in the order of memory, as a view."""
    return tensor.as_strided((tensor.numel(),), (1,))


def _pack(counts: Tensor, width: int) -> Tensor:
    """The ``width`` low bits of each count: bytes that hold 8 / width of them, or int16."""
    if width == 16:
        return counts.to(torch.int16)
    codes = _flat(counts.to(torch.uint8)) & (2**width - 1)
    per_byte = 8 // width
    codes = torch.nn.functional.pad(codes, (0, -len(codes) % per_byte))
    first, *others = codes.chunk(per_byte)
    packed = first.clone()
    for shift, part in enumerate(others, 1):
        packed |= part << (shift * width)
    return packed


def _correction(packed: Tensor, counts: Tensor, width: int) -> Tensor:
    """What to add to each count for its low bits to become the packed ones: the nearest such number."""
    if width == 16:
        return packed - counts.to(torch.int16)  # wraps around
    parts = [(packed >> (shift * width)) & (2**width - 1) for shift in range(8 // width)]
    low = counts.to(torch.uint8)
    wanted = torch.cat(parts)[: low.numel()].as_strided(low.shape, low.stride())
    half = 2 ** (width - 1)
    return ((wanted - low + half) & (2**width - 1)).to(torch.int8) - half
