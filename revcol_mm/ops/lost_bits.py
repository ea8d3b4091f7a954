"""Keeping the few bits that multiplying by alpha loses, so that a coupling can be undone exactly.

The state ``c`` of a reversible chain is held in float64 on a fixed grid, as multiples of a step q, and a
coupling computes ``c' = round(F + alpha * c)`` on it. From ``c'``, ``F`` and alpha the old value is known
to within ``1 / (2 |alpha|)`` steps; the low bits of ``c / q``, two of them at alpha 0.5, tell which multiple
it was. Maclaurin et al. do the same for the momentum of SGD ("Gradient-based Hyperparameter Optimization
through Reversible Learning", arXiv 1502.03492, section 2.2).
"""

from typing import NamedTuple, Sequence

import torch
import torch.nn.functional as F
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


def grid_limit(offset: Tensor) -> Tensor:
    """The largest absolute value that an offset rounds to its grid."""
    return offset / 3


def low_bits(on_grid: Tensor, dtype: torch.dtype) -> Tensor:
    """The lowest bits of a state plus offset, as integers of this type."""
    return on_grid.view(torch.int64).to(dtype)


def restore_words_(on_grid: Tensor, words: Tensor, offset: Tensor) -> None:
    """Move a state plus offset to the nearest grid point with these low bits, in place."""
    _move_(on_grid, words - low_bits(on_grid, words.dtype), offset)  # wraps around


def _move_(on_grid: Tensor, num_steps: Tensor, offset: Tensor) -> None:
    on_grid.addcmul_(num_steps, offset / (1.5 * 2.0**52))  # without the copies that mixed integers cost


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


def plan_codes(alphas: Sequence[Tensor]) -> list[CodePlan]:
    """Choose the width of codes for each alpha.

    The values decide how much memory is taken, so the host must know them: one transfer for all.

    Raises:
        ValueError: If an alpha is too small for 16 bits, below 1.6e-5.
    """
    sizes = torch.cat([alpha.detach().flatten() for alpha in alphas]).abs().double().cpu()
    smallest = 1 / (2 ** WIDTHS[-1] - 1.5)
    if not sizes.min() >= smallest:  # nan included
        raise ValueError(f'|alpha| of {sizes.min().item():.1e} cannot be undone, only {smallest:.1e} or more')
    candidates = sizes.reciprocal() + 1.5  # how many old values lead to the same new one, at most
    classes = torch.searchsorted(torch.tensor([2.0**width for width in WIDTHS]).double(), candidates)
    parts = classes.split([alpha.numel() for alpha in alphas])
    return [_plan(alpha, part) for alpha, part in zip(alphas, parts)]


def _plan(alpha: Tensor, classes: Tensor) -> CodePlan:
    narrowest, widest = int(classes.amin()), int(classes.amax())
    dims = [dim for dim, size in enumerate(alpha.shape) if size > 1]
    if len(dims) != 1:
        return CodePlan(WIDTHS[widest], [], None)
    wider = [
        (WIDTHS[i], (classes == i).nonzero().flatten().to(alpha.device))
        for i in range(narrowest + 1, widest + 1)
    ]
    return CodePlan(WIDTHS[narrowest], wider, dims[0] - alpha.ndim)  # from the right, as tensors broadcast


class Codes:
    """Low bits of a level's state, packed.

    Args:
        words: The state's 16 lowest bits.
        plan: How many bits of each channel.
    """

    def __init__(self, words: Tensor, plan: CodePlan) -> None:
        self.plan = plan
        self.packed = [
            _pack(words if indices is None else words.index_select(plan.dim, indices), width)
            for width, indices in self._groups()
        ]

    def _groups(self) -> Sequence[tuple[int, Tensor | None]]:
        # The wider codes first: once they are applied, the narrow code of those channels agrees.
        return [*self.plan.wider, (self.plan.width, None)]

    @property
    def nbytes(self) -> int:
        return sum(packed.nbytes for packed in self.packed)

    def restore_(self, on_grid: Tensor, offset: Tensor) -> None:
        """Move a state plus offset to the nearest grid point with these low bits, in place."""
        for (width, indices), packed in zip(self._groups(), self.packed):
            if indices is None:
                _move_(on_grid, _correction(packed, on_grid, width), offset)
            else:
                near = on_grid.index_select(self.plan.dim, indices)
                _move_(near, _correction(packed, near, width), offset)
                on_grid.index_copy_(self.plan.dim, indices, near)


def _flat(tensor: Tensor) -> Tensor:
    """A dense tensor's elements in the order of memory, as a view."""
    return tensor.as_strided((tensor.numel(),), (1,))


def _pack(words: Tensor, width: int) -> Tensor:
    """The ``width`` low bits of each word: bytes that hold 8 / width of them, or int16."""
    if width == 16:
        return words
    codes, num_codes = _flat(words.to(torch.uint8)).bitwise_and_(2**width - 1), 8 // width
    if len(codes) % num_codes:
        codes = F.pad(codes, (0, -len(codes) % num_codes))
    packed, *others = codes.view(num_codes, -1)
    for index, code in enumerate(others, start=1):
        packed = packed.add(code, alpha=2 ** (index * width))
    return packed


def _correction(packed: Tensor, on_grid: Tensor, width: int) -> Tensor:
    """How many steps it is to the nearest grid point whose low bits are the packed ones."""
    if width == 16:
        return packed - low_bits(on_grid, torch.int16)  # wraps around
    low = low_bits(on_grid, torch.uint8)
    shifts = torch.arange(0, 8, width, dtype=torch.uint8, device=packed.device)
    wanted = (packed >> shifts.unsqueeze(1)).flatten()[: low.numel()].as_strided(low.shape, low.stride())
    half = 2 ** (width - 1)
    difference = wanted.sub_(low).add_(half).bitwise_and_(2**width - 1)
    return difference.view(torch.int8).sub_(half)
