"""The sums of reversible chains, done and undone to the bit; the fused kernels, interpreted and on a GPU."""

import os
import random

import pytest
import torch

from revcol_mm.ops import exact_sums

from .subprocesses import run

INTERPRETED = os.environ.get('TRITON_INTERPRET') == '1'
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def problem(seed, device='cpu', dtype=None):
    """Arguments of couple: a level after its first link, and the next."""
    draw = random.Random(seed)
    torch.manual_seed(seed)
    num_rows, num_channels = draw.randint(1, 70), draw.choice([1, 3, 16, 130])
    dtype = dtype or draw.choice(DTYPES)
    width = draw.choice(exact_sums.WIDTHS)
    sizes = torch.empty(num_channels, device=device).uniform_(1 / (2**width - 1.5) + 1e-6, 1.5)
    alpha = (sizes * torch.randn_like(sizes).sign()).to(dtype)
    shape = num_rows, num_channels
    residual, first = torch.randn(2, *shape, device=device).to(dtype)
    ones = torch.ones_like(alpha)
    state, offset = exact_sums.start(first, torch.randn(shape, device=device, dtype=dtype), ones, None)
    return residual, state, alpha, offset, width


@pytest.mark.parametrize('seed', range(40))
def test_what_is_done_is_undone_to_the_last_bit(seed, device):
    residual, state, alpha, offset, width = problem(seed, device)
    *after, code = exact_sums.couple_op(residual, state.feature, state.low, alpha, offset, width)
    grad = torch.randn_like(state.feature)
    feature, low, checksum, grad_before, grad_alpha = exact_sums.uncouple_op(
        residual, *after[:2], code, alpha, offset, width, grad
    )
    assert torch.equal(feature, state.feature) and torch.equal(low, state.low)
    assert checksum == state.checksum
    torch.testing.assert_close(grad_before, grad * alpha)
    torch.testing.assert_close(
        grad_alpha, (grad.float() * feature.float()).sum(0).to(alpha.dtype), rtol=1e-2, atol=1e-3
    )
    # in the arithmetic of its type the sum is the plain one
    plain = torch.addcmul(residual, alpha, state.feature)
    torch.testing.assert_close(
        after[0],
        plain,
        rtol=2 * torch.finfo(plain.dtype).eps,
        atol=1e-2 if plain.dtype != torch.float32 else 1e-6,
    )


def test_a_changed_bit_changes_the_checksum():
    residual, state, alpha, offset, width = problem(0, dtype=torch.float32)
    *after, code = exact_sums.couple_op(residual, state.feature, state.low, alpha, offset, width)
    residual[0, 0] = torch.nextafter(residual[0, 0], residual.new_tensor(torch.inf))
    empty = state.feature.new_empty(0)
    *_, checksum, _, _ = exact_sums.uncouple_op(residual, *after[:2], code, alpha, offset, width, empty)
    assert checksum != state.checksum


@pytest.mark.parametrize('op', ['couple_op', 'uncouple_op'])
def test_operators_are_registered_as_torch_wants_them(op):
    residual, state, alpha, offset, width = problem(1)
    code = exact_sums.couple(residual, state.feature, state.low, alpha, offset, width)[3]
    arguments = (residual, *state[:2], alpha, offset, width)
    if op == 'uncouple_op':
        arguments = (residual, *state[:2], code, alpha, offset, width, torch.randn_like(state.feature))
    torch.library.opcheck(getattr(exact_sums, op), arguments, test_utils=('test_schema', 'test_faketensor'))


@pytest.mark.parametrize(
    'alphas, width, wide',
    [([0.5] * 16, 2, []), ([0.5] * 15 + [1e-3], 2, [15]), ([0.5] * 8 + [0.3] * 8, 4, [])],
)
def test_codes_are_as_wide_as_most_channels_need(alphas, width, wide):
    (plan,) = exact_sums.plan_codes([torch.tensor(alphas).double().view(1, -1, 1)])
    assert plan.width == width and (plan.wide is None if not wide else plan.wide.tolist() == wide)


def assert_equal_to_the_bit(seed, kernels, device='cpu', dtype=None):
    residual, state, alpha, offset, width = problem(seed, device, dtype)
    expected = exact_sums.couple(residual, state.feature, state.low, alpha, offset, width)
    actual = kernels.couple(residual, state.feature, state.low, alpha, offset, width)
    assert all(map(torch.equal, actual, expected))
    feature, low, _, code = expected
    for grad in (torch.randn_like(feature), feature.new_empty(0)):
        arguments = (residual, feature, low, code, alpha, offset, width, grad)
        *expected_state, grad_alpha = exact_sums.uncouple(*arguments)
        *actual_state, actual_grad_alpha = kernels.uncouple(*arguments)
        assert all(map(torch.equal, actual_state, expected_state))
        torch.testing.assert_close(
            actual_grad_alpha, grad_alpha, rtol=1e-2 if alpha.dtype != torch.float32 else 1e-5, atol=1e-4
        )


@pytest.mark.skipif(INTERPRETED, reason='it is what runs it')
def test_kernels_interpreted():
    """In a process of its own: Triton is told to interpret before it is imported."""
    pytest.importorskip('triton')
    output = run(
        '-m',
        'pytest',
        '-p',
        'no:xdist',
        '-o',
        'addopts=',
        __file__,
        '-k',
        'interpreted_kernels',
        TRITON_INTERPRET='1',
    )
    assert ' passed' in output


@pytest.mark.skipif(not INTERPRETED, reason='test_kernels_interpreted runs it')
@pytest.mark.parametrize('seed', range(24))
def test_interpreted_kernels_are_equal_to_the_bit(seed):
    from revcol_mm.ops import exact_sums_triton

    dtype = DTYPES[seed % 2]  # not bfloat16, to which the interpreter truncates where GPUs round
    assert_equal_to_the_bit(seed, exact_sums_triton, dtype=dtype)


@pytest.mark.skipif(not INTERPRETED, reason='test_kernels_interpreted runs it')
@pytest.mark.parametrize('dtype, forward, backward', [(torch.float32, 20, 28), (torch.float16, 14, 18)])
def test_interpreted_kernels_move_no_more_bytes_than_their_module_says(dtype, forward, backward, monkeypatch):
    """The elements' bytes, a quarter of one for the code, and what there is once a channel or a program."""
    from triton.runtime.interpreter import InterpreterBuilder

    from revcol_mm.ops import exact_sums_triton

    moved = []

    def count(name, mask_index):
        original = getattr(InterpreterBuilder, name)

        def counted(builder, pointers, *arguments):
            size = pointers.get_element_ty().primitive_bitwidth // 8
            moved.append(size * int(arguments[mask_index].data.sum()))
            return original(builder, pointers, *arguments)

        monkeypatch.setattr(InterpreterBuilder, name, counted)

    count('create_masked_load', 0)
    count('create_masked_store', 1)
    feature = torch.randn(1024, 64).to(dtype)
    alpha = torch.full((64,), 0.5).to(dtype)
    state, offset = exact_sums.start(feature, feature, torch.ones_like(alpha), None)
    *after, _, code = exact_sums_triton.couple(feature, *state[:2], alpha, offset, 2)
    assert forward < sum(moved) / feature.numel() < forward + 0.75
    moved.clear()
    exact_sums_triton.uncouple(feature, *after, code, alpha, offset, 2, torch.randn(1024, 64).to(dtype))
    assert backward < sum(moved) / feature.numel() < backward + 1


@pytest.mark.cuda
@pytest.mark.parametrize('seed', range(24))
def test_kernels_on_a_gpu_are_equal_to_the_bit(seed):
    from revcol_mm.ops import exact_sums_triton

    assert_equal_to_the_bit(seed, exact_sums_triton, 'cuda')
