"""Exactly invertible sums: the torch operators, and the Triton kernels in the interpreter and on a GPU."""

import os
import random

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from revcol_mm.ops import exact_couplings, exact_sums

from .subprocesses import run

INTERPRETED = os.environ.get('TRITON_INTERPRET') == '1'
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def problem(seed, device='cpu', dtype=None):
    """Return random arguments of couple: residual, feature, low, alpha, offset and width."""
    draw = random.Random(seed)
    torch.manual_seed(seed)
    num_rows, num_channels = draw.randint(1, 70), draw.choice([1, 3, 16, 130])
    dtype = dtype or draw.choice(DTYPES)
    width = draw.choice(exact_sums.WIDTHS)
    sizes = torch.empty(num_channels, device=device).uniform_(1 / (2**width - 1.5) + 1e-6, 1.5)
    alpha = (sizes * torch.randn_like(sizes).sign()).to(dtype)
    residual, first, before = torch.randn(3, num_rows, num_channels, device=device).to(dtype)
    state = exact_couplings.start(first, before, torch.ones_like(alpha))
    return residual, state.feature, state.low, alpha, state.offset, width


@pytest.mark.parametrize('seed', range(40))
def test_uncouple_inverts_couple_bitwise(seed, device):
    residual, feature, low, alpha, offset, width = problem(seed, device)
    *after, _, code = exact_sums.couple_op(residual, feature, low, alpha, offset, width)
    grad = torch.randn_like(feature)
    before, before_low, checksum, grad_before, grad_alpha = exact_sums.uncouple_op(
        residual, *after, code, alpha, offset, width, grad
    )
    assert torch.equal(before, feature)
    assert torch.equal(before_low, low)
    assert checksum == exact_sums.compute_checksum(exact_sums.join(feature, low) + offset)
    torch.testing.assert_close(grad_before, grad * alpha)
    torch.testing.assert_close(
        grad_alpha, (grad.float() * feature.float()).sum(0).to(alpha.dtype), rtol=1e-2, atol=1e-3
    )
    plain = torch.addcmul(residual, alpha, feature)  # the same sum, up to the rounding of its dtype
    atol = 1e-2 if plain.dtype != torch.float32 else 1e-6
    torch.testing.assert_close(after[0], plain, rtol=2 * torch.finfo(plain.dtype).eps, atol=atol)


def test_a_changed_bit_changes_the_checksum():
    residual, feature, low, alpha, offset, width = problem(0, dtype=torch.float32)
    *after, _, code = exact_sums.couple_op(residual, feature, low, alpha, offset, width)
    checksums = []
    for _ in range(2):
        arguments = residual, *after, code, alpha, offset, width, feature.new_empty(0)
        checksums.append(exact_sums.uncouple_op(*arguments)[2])
        residual[0, 0] = torch.nextafter(residual[0, 0], residual.new_tensor(torch.inf))
    assert checksums[0] != checksums[1]


class CountBytes(TorchDispatchMode):
    """Counts the bytes that operators read and write; a fused operator counts once."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if not func.is_view and 'empty' not in func.__name__:
            tensors = [leaf for leaf in tree_leaves((args, result)) if isinstance(leaf, torch.Tensor)]
            self.count += sum(min(t.nbytes, t.untyped_storage().nbytes()) for t in tensors)
        return result


def test_the_first_coupling_of_a_level_moves_at_most_33_bytes_per_element():
    """20 in the fused operator, 12 to prepare its inputs, and 1/4 for a code that is not kept."""
    residual = torch.randn(2, 32, 32, 64).movedim(-1, 1)
    with CountBytes() as moved:
        exact_couplings.start(residual, torch.zeros(1), torch.full((64, 1, 1), 0.5))
    assert moved.count <= 33 * residual.numel()


@pytest.mark.parametrize('alpha_shape', [(), (64, 1, 1)])
@pytest.mark.parametrize('dtype', [*DTYPES, torch.float64])
def test_the_first_coupling_of_a_level_is_the_plain_sum(dtype, alpha_shape):
    residual, before = torch.randn(2, 3, 64, 5, 5).to(dtype)
    alpha = torch.rand(alpha_shape).add(0.1).to(dtype)
    state = exact_couplings.start(residual, before, alpha)
    expected = torch.addcmul(residual.double(), alpha.double(), before.double())
    step = 2.0 ** exact_sums.STEP_EXPONENTS[dtype] * 16
    torch.testing.assert_close(state.feature.double(), expected, rtol=torch.finfo(dtype).eps, atol=step)


@pytest.mark.parametrize('op', ['couple_op', 'uncouple_op'])
def test_operators_are_registered_correctly(op):
    residual, feature, low, alpha, offset, width = arguments = problem(1)
    if op == 'uncouple_op':
        code = exact_sums.couple(*arguments)[3]
        arguments = residual, feature, low, code, alpha, offset, width, torch.randn_like(feature)
    torch.library.opcheck(getattr(exact_sums, op), arguments, test_utils=('test_schema', 'test_faketensor'))


@pytest.mark.parametrize(
    'alphas, width, wide',
    [([0.5] * 16, 2, []), ([0.5] * 15 + [1e-3], 2, [15]), ([0.5] * 8 + [0.3] * 8, 4, [])],
)
def test_codes_are_as_wide_as_most_channels_need(alphas, width, wide):
    (plan,) = exact_couplings.plan_codes([torch.tensor(alphas).double().view(1, -1, 1)])
    assert plan.width == width and (plan.wide is None if not wide else plan.wide.tolist() == wide)


def assert_bitwise_equal(seed, kernels, device='cpu', dtype=None):
    """Check that Triton kernels give the results of the torch operators."""
    residual, feature, _, alpha, offset, width = arguments = problem(seed, device, dtype)
    expected = exact_sums.couple(*arguments)
    assert all(map(torch.equal, kernels.couple(*arguments), expected))
    after, after_low, _, code = expected
    for grad in (torch.randn_like(feature), feature.new_empty(0)):
        arguments = residual, after, after_low, code, alpha, offset, width, grad
        *expected_state, grad_alpha = exact_sums.uncouple(*arguments)
        *actual_state, actual_grad_alpha = kernels.uncouple(*arguments)
        assert all(map(torch.equal, actual_state, expected_state))
        rtol = 1e-2 if alpha.dtype != torch.float32 else 1e-5
        torch.testing.assert_close(actual_grad_alpha, grad_alpha, rtol=rtol, atol=1e-4)


@pytest.mark.skipif(INTERPRETED, reason='the interpreter compiles nothing')
def test_kernels_are_compiled_once_for_all_image_sizes():
    pytest.importorskip('triton')
    from revcol_mm.ops import exact_sums_triton

    for kernel in (exact_sums_triton._couple_kernel, exact_sums_triton._uncouple_kernel):
        unspecialized = {param.name for param in kernel.params if param.do_not_specialize}
        assert unspecialized == {'num_rows', 'num_words'}


@pytest.mark.skipif(INTERPRETED, reason='this test starts the interpreter')
def test_kernels_interpreted():
    """In a subprocess, because TRITON_INTERPRET must be set before Triton is imported."""
    pytest.importorskip('triton')
    options = '-m', 'pytest', '-p', 'no:xdist', '-o', 'addopts='
    output = run(*options, __file__, '-k', 'interpreted_kernels', TRITON_INTERPRET='1')
    assert ' passed' in output


@pytest.mark.skipif(not INTERPRETED, reason='run by test_kernels_interpreted')
@pytest.mark.parametrize('seed', range(24))
def test_interpreted_kernels_are_bitwise_equal(seed):
    from revcol_mm.ops import exact_sums_triton

    dtype = DTYPES[seed % 2]  # not bfloat16: the interpreter truncates where GPUs round
    assert_bitwise_equal(seed, exact_sums_triton, dtype=dtype)


@pytest.mark.skipif(not INTERPRETED, reason='run by test_kernels_interpreted')
@pytest.mark.parametrize('dtype, forward, backward', [(torch.float32, 20, 28), (torch.float16, 14, 18)])
def test_interpreted_kernels_move_only_the_documented_bytes(dtype, forward, backward, monkeypatch):
    """The bytes of the elements, 1/4 byte for the code, and a little per channel and program."""
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
    _, low, _, offset = exact_couplings.start(feature, feature, torch.ones_like(alpha))
    *after, _, code = exact_sums_triton.couple(feature, feature, low, alpha, offset, 2)
    assert forward < sum(moved) / feature.numel() < forward + 0.75
    moved.clear()
    exact_sums_triton.uncouple(feature, *after, code, alpha, offset, 2, torch.randn(1024, 64).to(dtype))
    assert backward < sum(moved) / feature.numel() < backward + 1


@pytest.mark.cuda
@pytest.mark.parametrize('seed', range(24))
def test_kernels_on_a_gpu_are_bitwise_equal(seed):
    from revcol_mm.ops import exact_sums_triton

    assert_bitwise_equal(seed, exact_sums_triton, 'cuda')
