"""The exact arithmetic of :mod:`.exact_sums` for features of any shape, with codes no wider than needed."""

from typing import NamedTuple, Sequence

import torch
from torch import Tensor

from .exact_sums import WIDTHS, State, compute_checksum, couple_op, grid_offset, join, uncouple_op

MIN_ALPHA = 1 / (2**16 - 1.5)  # the smallest |alpha| for which a code of 16 bits suffices


class CodePlan(NamedTuple):
    """How many bits per element a coupling stores.

    Args:
        width: Code width of all channels, in bits.
        wide: Indices of the few channels whose alpha is so small that they need more bits; None if there are
            none. For these channels a second code of 16 bits is stored.
    """

    width: int
    wide: Tensor | None

    def to(self, device: torch.device) -> 'CodePlan':
        return self if self.wide is None else self._replace(wide=self.wide.to(device, non_blocking=True))


def plan_codes(alphas: Sequence[Tensor]) -> list[CodePlan]:
    """Choose code widths for each alpha.

    Args:
        alphas: Float64 tensors on the CPU: their values determine the sizes of tensors.

    Raises:
        ValueError: If an ``|alpha|`` is below ``MIN_ALPHA``.
    """
    plans = []
    for alpha in alphas:
        sizes = alpha.abs().flatten()
        if not sizes.min() >= MIN_ALPHA:  # also true for nan
            raise ValueError(
                f'a coupling with |alpha| = {sizes.min().item():.1e} cannot be inverted: '
                f'|alpha| must be at least {MIN_ALPHA:.1e}'
            )
        candidates = sizes.reciprocal() + 1.5  # at most so many old values give the same new value
        for width in WIDTHS:
            (wide,) = (candidates > 2**width).nonzero(as_tuple=True)
            if 16 * len(wide) <= len(sizes):
                break
        plans.append(CodePlan(width, wide if len(wide) else None))
    return plans


class Codes(NamedTuple):
    """What is stored to invert a coupling: the code of all channels, and the 16-bit code of wide ones."""

    plan: CodePlan
    code: Tensor
    wide_code: Tensor | None

    @property
    def nbytes(self) -> int:
        return self.code.nbytes + (0 if self.wide_code is None else self.wide_code.nbytes)


def start(residual: Tensor, before: Tensor, alpha: Tensor, offset: Tensor | None = None) -> State:
    """Run the first coupling of a level: ``round(F + alpha * round(c))`` for any values ``c``.

    Args:
        residual: ``F``.
        before: ``c``, of a shape broadcastable to that of ``F``. It need not be on the grid, so this coupling
            cannot be inverted.
        alpha: A single value, or one value per channel.
        offset: Offset of the level's grid; None to compute it from a bound of the result.
    """
    dtype = _level_dtype(residual, alpha, before)
    if offset is None:
        offset = grid_offset(_largest(residual) + _largest(alpha * before), dtype)
    low = torch.zeros(residual.numel(), dtype=torch.float32, device=residual.device)
    low = low.view(-1, residual.shape[channel_dim(alpha)])
    unused = offset.new_zeros(())  # in place of a checksum
    state = State(before.to(dtype).expand(residual.shape), low, unused, offset)
    state, _ = advance(residual, state, alpha, CodePlan(2, None))  # the code is not needed: the smallest
    return state


def advance(residual: Tensor, state: State, alpha: Tensor, plan: CodePlan) -> tuple[State, Codes]:
    """Compute ``round(F + alpha * c)`` from the state of ``c``. Other arguments as for :func:`start`.

    Raises:
        ValueError: If ``F`` has another shape than ``c``, or if the dtype of the level would change.
    """
    shapes = tuple(residual.shape), tuple(state.feature.shape)
    if shapes[0] != shapes[1]:
        raise ValueError(f'the function of a coupling must return shape {shapes[1]}, got {shapes[0]}')
    dtypes = _level_dtype(residual, alpha, state.feature), state.feature.dtype
    if dtypes[0] != dtypes[1]:
        raise ValueError(f'a coupling must keep the dtype of its level, {dtypes[1]}, got {dtypes[0]}')
    dim = channel_dim(alpha)
    feature, vector = _matrix(state.feature, dim), _vector(alpha, residual, dim)
    new, low, checksum, code = couple_op(
        _matrix(residual, dim), feature, state.low, vector, state.offset, plan.width
    )
    wide_code = None
    if plan.wide is not None:
        values = join(feature[:, plan.wide], state.low[:, plan.wide]).add_(state.offset)
        wide_code = values.view(torch.int64).to(torch.int16)
    state = State(_from_matrix(new, residual, dim), low, checksum, state.offset)
    return state, Codes(plan, code, wide_code)


def retreat(
    residual: Tensor, state: State, codes: Codes, alpha: Tensor, grad: Tensor | None
) -> tuple[State, Tensor | None, Tensor | None]:
    """Invert :func:`advance`, and differentiate it.

    Returns:
        The state before, whose checksum shows whether it is exact; and, unless ``grad`` (the gradient of
        ``state.feature``) is None, the gradients of the feature before and of alpha.
    """
    dim, offset, (plan, code, wide_code) = channel_dim(alpha), state.offset, codes
    vector, feature = _vector(alpha, residual, dim), _matrix(state.feature, dim)
    grads = feature.new_empty(0) if grad is None else _matrix(grad.expand(residual.shape), dim)
    arguments = _matrix(residual, dim), feature, state.low
    before, low, checksum, before_grad, vector_grad = uncouple_op(
        *arguments, code, vector, offset, plan.width, grads
    )
    if plan.wide is not None:  # the narrow code gave wrong values for these channels: replace them
        wrong = compute_checksum(join(before[:, plan.wide], low[:, plan.wide]).add_(offset))
        wide = [tensor[:, plan.wide] for tensor in arguments]
        grads = grads if grad is None else grads[:, plan.wide]
        right = uncouple_op(*wide, wide_code, vector[plan.wide], offset, 16, grads)
        before[:, plan.wide], low[:, plan.wide], right_checksum, _, vector_grad[plan.wide] = right
        checksum = checksum - wrong + right_checksum
    state = State(_from_matrix(before, residual, dim), low, checksum, offset)
    if grad is None:
        return state, None, None
    alpha_grad = vector_grad.sum_to_size(alpha.numel()).view(alpha.shape)
    return state, _from_matrix(before_grad, residual, dim), alpha_grad


def _largest(values: Tensor) -> Tensor:
    """Return ``max |values|`` in float64."""
    lowest, highest = values.aminmax()
    return torch.maximum(-lowest, highest).double()


def _level_dtype(residual: Tensor, alpha: Tensor, feature: Tensor) -> torch.dtype:
    """Return the dtype of ``torch.addcmul(residual, alpha, feature)``."""
    if residual.is_cuda and torch.is_autocast_enabled('cuda'):
        alpha = alpha.expand(1)  # autocast promotes to the widest type, also that of single values
    return torch.promote_types(torch.result_type(residual, alpha), feature.dtype)


def channel_dim(alpha: Tensor) -> int:
    """Return the dimension of alpha with more than one value, as a negative index; -1 if there is none."""
    dims = [dim for dim in range(-alpha.ndim, 0) if alpha.shape[dim] > 1]
    if len(dims) > 1:
        raise ValueError(f'alpha must be a single value or one value per channel, got {tuple(alpha.shape)}')
    return dims[0] if dims else -1


def _matrix(tensor: Tensor, dim: int) -> Tensor:
    """Reshape to (P, C), where ``dim`` holds the channels; a view if channels are last in memory."""
    return tensor.movedim(dim, -1).reshape(-1, tensor.shape[dim]).contiguous()


def _from_matrix(matrix: Tensor, like: Tensor, dim: int) -> Tensor:
    """Invert :func:`_matrix`: view a (P, C) matrix in the shape of ``like``."""
    return matrix.view(like.movedim(dim, -1).shape).movedim(-1, dim)


def _vector(alpha: Tensor, like: Tensor, dim: int) -> Tensor:
    """Return alpha as a vector (C,), with one value for each channel of ``like``."""
    return alpha.detach().flatten().expand(like.shape[dim])
