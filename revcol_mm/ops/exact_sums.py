"""The sum ``F + alpha * c``, done and undone to the last bit: the arithmetic of reversible chains.

Multiplying by alpha loses bits, one of every element at alpha 0.5. So ``c`` is a multiple of a fixed step q,
held as two numbers: the *feature*, ``c`` rounded to its type, and *low*, the rest. ``c' = round(F + alpha *
c)`` is computed in float64 and rounded to multiples of q. From ``c'``, ``F`` and alpha the old ``c`` is known
to within ``1 / (2 |alpha|)`` steps; the low bits of ``c / q``, two of them at alpha 0.5, tell which multiple
it was. They are the *code* that is kept. Maclaurin et al. do the same for the momentum of SGD
("Gradient-based Hyperparameter Optimization through Reversible Learning", arXiv 1502.03492, section 2.2).

The operators work on matrices (P, C): positions, and channels, of which each has an alpha.
"""

from types import ModuleType
from typing import Iterator, NamedTuple, Sequence

import torch
from torch import Tensor

# The step is 2^-36 of the largest value of a level in its first link: 12 bits finer than float32, while
# values may grow 2^12-fold before low, or float64's 53 bits, cannot hold the rest.
STEP_EXPONENTS = {torch.float64: -44, torch.float32: -36, torch.float16: -24, torch.bfloat16: -24}
WIDTHS = (2, 4, 8, 16)  # bits of a code
MIN_ALPHA = 1 / (2**16 - 1.5)  # that 16 bits suffice for
CHUNK = 2**17  # elements that CPUs' caches hold, and that torch splits between some threads


class State(NamedTuple):
    """Exact values of a level.

    Args:
        feature: Rounded to the type of the level; the last dimension in memory is that of channels.
        low: (P, C), float32, the rest.
        checksum: (), int64: the sum of the squares of all values' bits, which depends on no order.
    """

    feature: Tensor
    low: Tensor
    checksum: Tensor


def grid_offset(values: Tensor, dtype: torch.dtype) -> Tensor:
    """The number o for which ``(v + o) - o`` rounds v to the grid of a level.

    In float64 the numbers from o * 2/3 to o * 4/3 are the multiples of 2^-52 * o * 2/3, which is the step,
    and their bits, read as an integer, count steps.

    Args:
        values: The level's first ones.
        dtype: Type of its features.
    """
    exponent = values.abs().amax().clamp(min=1e-30).log2().ceil() + STEP_EXPONENTS[dtype]
    return 1.5 * torch.exp2(exponent + 52)


def couple(
    residual: Tensor, feature: Tensor, low: Tensor, alpha: Tensor, offset: Tensor, width: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Go from ``c`` to ``round(F + alpha * c)``.

    Args:
        residual: ``F``, (P, C).
        feature, low: The state ``c``.
        alpha: (C,).
        offset: The level's.
        width: Bits of the code: 2, 4, 8 or 16.

    Returns:
        Feature, low and checksum of the new state; and the code, (S, C), uint8, or int16 if ``width`` is 16:
        the low bits of the old state. In one byte are those of positions p, p + S, p + 2S and so on.
    """
    per_word = max(8 // width, 1)
    num_words = -(-len(feature) // per_word)
    code = feature.new_zeros(num_words, feature.shape[1], dtype=torch.uint8 if width <= 8 else torch.int16)
    new_feature, new_low = torch.empty_like(feature), torch.empty_like(low)
    checksum, alpha = offset.new_zeros((), dtype=torch.int64), alpha.double()
    for words, part, at in _chunks(feature, per_word):
        values = _values(feature[at], low[at]).add_(offset)
        bits = values.view(torch.int64).to(code.dtype)
        code[words] |= bits if width >= 8 else bits.bitwise_and_(2**width - 1) << part * width
        values.sub_(offset).mul_(alpha).add_(residual[at]).add_(offset)
        checksum += _checksum(values)
        _split_(values.sub_(offset), new_feature[at], new_low[at])
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
    """Undo :func:`couple`, and differentiate it with respect to ``c`` and alpha.

    Args:
        residual: ``F`` as it was, (P, C).
        feature, low: The state after :func:`couple`.
        code: What it has kept.
        alpha, offset, width: As they were.
        grad: Gradient of ``feature``, (P, C); (0,) if there is none.

    Returns:
        Feature, low and checksum of the state before; and gradients of its feature, (P, C) or (0,), and of
        alpha, (C,).
    """
    per_word = max(8 // width, 1)
    new_feature, new_low, new_grad = (torch.empty_like(tensor) for tensor in (feature, low, grad))
    grad_alpha = torch.zeros_like(alpha, dtype=torch.promote_types(alpha.dtype, torch.float32))
    checksum, inverse = offset.new_zeros((), dtype=torch.int64), alpha.double().reciprocal()
    step, half = (offset.view(torch.int64) + 1).view(torch.float64) - offset, 2 ** (width - 1)
    for words, part, at in _chunks(feature, per_word):
        values = _values(feature[at], low[at]).sub_(residual[at]).mul_(inverse).add_(offset)
        wanted = code[words] >> part * width if width < 8 else code[words]
        num_steps = wanted - values.view(torch.int64).to(code.dtype)  # wraps around
        if width < 16:
            num_steps = num_steps.add_(half).bitwise_and_(2**width - 1).view(torch.int8).sub_(half)
        values.addcmul_(num_steps.double(), step)
        checksum += _checksum(values)
        _split_(values.sub_(offset), new_feature[at], new_low[at])
        if grad.numel():
            torch.mul(grad[at], alpha, out=new_grad[at])
            grad_alpha += (grad[at].to(grad_alpha.dtype) * new_feature[at]).sum(0)
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
    """The fused kernels, where there is Triton; they are not for float64."""
    try:
        from . import exact_sums_triton
    except ImportError:
        return None
    return exact_sums_triton if feature.dtype != torch.float64 else None


def _chunks(feature: Tensor, per_word: int) -> Iterator[tuple[slice, int, slice]]:
    """Yield parts of a matrix: rows of the code, the place in its words, rows of the matrix."""
    num_rows, num_channels = feature.shape
    num_words = -(-num_rows // per_word)
    size = max(CHUNK // max(num_channels, 1), 1) if feature.device.type == 'cpu' else max(num_words, 1)
    for first in range(0, num_words, size):
        for part in range(per_word):
            before = part * num_words
            rows = slice(before + first, min(before + min(first + size, num_words), num_rows))
            if rows.start < rows.stop:
                yield slice(first, first + rows.stop - rows.start), part, rows


def _values(feature: Tensor, low: Tensor) -> Tensor:
    """Join a state, in float64."""
    return feature.to(torch.float64, copy=True).add_(low)


def _split_(values: Tensor, feature: Tensor, low: Tensor) -> None:
    """Undo :func:`_values`; what is in ``values`` is lost."""
    feature.copy_(values)
    low.copy_(values.sub_(feature))


def _checksum(values: Tensor) -> Tensor:
    bits = values.view(torch.int64)
    return (bits * bits).sum()


class Plan(NamedTuple):
    """How many bits of each channel are kept when a coupling multiplies by alpha.

    Args:
        width: Bits of a channel's code.
        wide: Indices of the few channels whose alpha is so small that they need more. They have 16 beside.
    """

    width: int
    wide: Tensor | None

    def to(self, device: torch.device) -> 'Plan':
        return self if self.wide is None else self._replace(wide=self.wide.to(device, non_blocking=True))


def plan_codes(alphas: Sequence[Tensor]) -> list[Plan]:
    """Choose the width of the codes for each alpha.

    The values decide how much memory is taken, so the host must know them.

    Args:
        alphas: On the host, in float64.

    Raises:
        ValueError: If an alpha is too small to be undone.
    """
    plans = []
    for alpha in alphas:
        sizes = alpha.abs().flatten()
        if not sizes.min() >= MIN_ALPHA:  # nan included
            raise ValueError(
                f'|alpha| of {sizes.min().item():.1e} cannot be undone, only {MIN_ALPHA:.1e} or more'
            )
        candidates = sizes.reciprocal() + 1.5  # how many old values lead to the same new one, at most
        for width in WIDTHS:
            (wide,) = (candidates > 2**width).nonzero(as_tuple=True)
            if 16 * len(wide) <= len(sizes):
                break
        plans.append(Plan(width, wide if len(wide) else None))
    return plans


class Coupled(NamedTuple):
    """What is kept of a coupling: its plan, low bits of the state before, and all 16 of wide channels."""

    plan: Plan
    code: Tensor
    wide_code: Tensor | None

    @property
    def nbytes(self) -> int:
        return self.code.nbytes + (0 if self.wide_code is None else self.wide_code.nbytes)


def start(residual: Tensor, before: Tensor, alpha: Tensor, offset: Tensor | None) -> tuple[State, Tensor]:
    """Couple a level for the first time; ``before`` may be any value of its shape, and is kept by the caller.

    Args:
        residual: ``F``.
        before: ``c``.
        alpha: One number, or one for each channel.
        offset: The level's, if it is known.

    Returns:
        The level's state, and its offset.
    """
    dim, dtype = channel_dim(alpha), torch.result_type(residual, alpha)
    values = matrix(before, dim).double() * _vector(alpha, residual, dim).double() + matrix(residual, dim)
    offset = grid_offset(values, dtype) if offset is None else offset
    values += offset
    checksum = _checksum(values)
    feature, low = torch.empty_like(values, dtype=dtype), torch.empty_like(values, dtype=torch.float32)
    _split_(values.sub_(offset), feature, low)
    return State(_like(feature, residual, dim), low, checksum), offset


def advance(
    residual: Tensor, state: State, alpha: Tensor, offset: Tensor, plan: Plan
) -> tuple[State, Coupled]:
    """Go from ``c`` to ``round(F + alpha * c)``; arguments as for :func:`start`.

    Raises:
        ValueError: If ``F`` has another shape than ``c``, or another type than it had at the start.
    """
    shapes = tuple(residual.shape), tuple(state.feature.shape)
    if shapes[0] != shapes[1]:
        raise ValueError(f'a function returns {shapes[0]} for a level of {shapes[1]}')
    dtypes = torch.result_type(residual, alpha), state.feature.dtype
    if dtypes[0] != dtypes[1]:
        raise ValueError(f'a coupling makes {dtypes[0]} of a level that was {dtypes[1]}')
    dim = channel_dim(alpha)
    feature, vector = matrix(state.feature, dim), _vector(alpha, residual, dim)
    new, low, checksum, code = couple_op(
        matrix(residual, dim), feature, state.low, vector, offset, plan.width
    )
    wide_code = None
    if plan.wide is not None:
        values = _values(feature[:, plan.wide], state.low[:, plan.wide]).add_(offset)
        wide_code = values.view(torch.int64).to(torch.int16)
    return State(_like(new, residual, dim), low, checksum), Coupled(plan, code, wide_code)


def retreat(
    residual: Tensor, state: State, coupled: Coupled, alpha: Tensor, offset: Tensor, grad: Tensor | None
) -> tuple[State, Tensor | None, Tensor | None]:
    """Undo :func:`advance`, and differentiate it.

    Returns:
        The state before, whose checksum tells whether it is the one that was; the gradients of its feature
        and of alpha, if there is one of ``state.feature``, ``grad``.
    """
    dim, (plan, code, wide_code) = channel_dim(alpha), coupled
    vector, feature = _vector(alpha, residual, dim), matrix(state.feature, dim)
    grads = feature.new_empty(0) if grad is None else matrix(grad.expand(residual.shape), dim)
    arguments = matrix(residual, dim), feature, state.low
    before, low, checksum, before_grad, vector_grad = uncouple_op(
        *arguments, code, vector, offset, plan.width, grads
    )
    if plan.wide is not None:  # of these, what has just been computed is wrong
        wrong = _checksum(_values(before[:, plan.wide], low[:, plan.wide]).add_(offset))
        arguments = [tensor[:, plan.wide] for tensor in arguments]
        grads = grads if grad is None else grads[:, plan.wide]
        right = uncouple_op(*arguments, wide_code, vector[plan.wide], offset, 16, grads)
        before[:, plan.wide], low[:, plan.wide], right_checksum, _, vector_grad[plan.wide] = right
        checksum = checksum - wrong + right_checksum
    state = State(_like(before, residual, dim), low, checksum)
    if grad is None:
        return state, None, None
    return state, _like(before_grad, residual, dim), vector_grad.sum_to_size(alpha.numel()).view(alpha.shape)


def channel_dim(alpha: Tensor) -> int:
    """The dimension along which alphas differ, from the right; the last one if there is one alpha only."""
    dims = [dim for dim in range(-alpha.ndim, 0) if alpha.shape[dim] > 1]
    if len(dims) > 1:
        raise ValueError(f'alpha is one number, or one for each channel, got {tuple(alpha.shape)}')
    return dims[0] if dims else -1


def matrix(tensor: Tensor, dim: int) -> Tensor:
    """(P, C), a view if the tensor's last dimension in memory is that of channels."""
    return tensor.movedim(dim, -1).reshape(-1, tensor.shape[dim]).contiguous()


def _like(matrix_: Tensor, tensor: Tensor, dim: int) -> Tensor:
    """Undo :func:`matrix`, as a view of the shape of ``tensor``."""
    return matrix_.view(tensor.movedim(dim, -1).shape).movedim(-1, dim)


def _vector(alpha: Tensor, tensor: Tensor, dim: int) -> Tensor:
    return alpha.detach().flatten().expand(tensor.shape[dim])
