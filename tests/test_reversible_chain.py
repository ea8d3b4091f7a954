"""Reversible chains of arbitrary functions: designs, errors, alphas and memory."""

import doctest
import random

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from revcol_mm.ops import Coupling, ReversibleChain, couple, uncouple
from revcol_mm.testing import StoringChain, parity, worst_errors

from .toy_chains import Conv, Summed, chain_of, linear_chain, loss_of, parameters, run_links


def test_gradcheck(device):
    links, x, start = linear_chain(3, dtype=torch.float64, device=device)
    inputs = [tensor[:2].clone().requires_grad_() for tensor in (x, *start)]

    def outputs(x, first, second, *params):
        return tuple(run_links(ReversibleChain(), links, x, [first, second]))

    assert torch.autograd.gradcheck(outputs, (*inputs, *parameters(links)))


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_chains_of_any_dtype_are_exact(dtype, device):
    """Without autocast; the other tests use float32."""
    links, x, start = chain_of([Conv() for _ in range(40)], dtype=dtype, device=device)
    tolerance = 1e-12 if dtype == torch.float64 else 3e-2  # autograd sums gradients of alpha in 16 bits
    assert parity.check_reversible(links, x, start, tolerance).output_error == 0


def test_dtype_under_autocast_is_that_of_a_plain_chain(device):
    """Also with an alpha of no dimensions, which type promotion treats differently."""
    dtype = torch.bfloat16
    for alpha_shape in ((), (3,)):
        functions = [Summed(nn.Linear(3, 3)) for _ in range(4)]
        links, x, start = chain_of(functions, (8, 3), alpha_shape, device=device)
        with torch.autocast(device.type, dtype):
            plain, reversible = (
                run_links(run, links, x, start) for run in (StoringChain(), ReversibleChain(links))
            )
        assert [feature.dtype for feature in reversible] == [feature.dtype for feature in plain]


def test_check_reversible_accepts_a_correct_design_and_names_a_broken_function(device):
    assert doctest.testmod(parity).failed == 0
    links, x, start = linear_chain(4, dtype=torch.float64, device=device)
    assert parity.check_reversible(links, x, start, tolerance=1e-9).kept_bytes > 0
    links[1][1].function.register_forward_hook(lambda m, i, o: o + 1e-3 * random.random())
    with pytest.raises(RuntimeError, match='not exact in link 1, level 1: either Summed gave another result'):
        parity.check_reversible(links, x, start)


def test_uncouple_inverts_couple():
    links, x, start = linear_chain(4, dtype=torch.float64)
    couplings = [coupling for link in links for coupling in link]
    with torch.no_grad():
        back = uncouple(couplings, x, couple(couplings, x, start))
    torch.testing.assert_close(back, start, rtol=1e-10, atol=1e-10)


def test_plain_chains_compute_nothing_in_float64(device):
    links, x, start = chain_of([Conv() for _ in range(6)], device=device)
    dtypes = set()

    class CollectDtypes(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            dtypes.update(leaf.dtype for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor))
            return result

    with CollectDtypes():
        loss_of(couple, links, x, start).backward()
    assert dtypes == {torch.float32}


# Designs


def test_levels_may_be_updated_in_any_order_repeatedly_or_not_at_all(device):
    links = []
    for index in range(6):
        order = [[2, 1, 0], [2, 1, 2], [1]][index % 3]
        alphas = [nn.Parameter(0.3 + 0.5 * torch.rand(1, 4, 1, 1, device=device)) for _ in order]
        links.append(
            [
                Coupling(level, (None,) if level == 2 else (level + 1, None), Conv().to(device), alpha)
                for level, alpha in zip(order, alphas)
            ]
        )
    x, *start = (torch.randn(2, 4, 6, 5, device=device) for _ in range(4))
    parity.check_reversible(links, x, start)


class Resized(nn.Module):
    """Maps inputs of some shapes to an output of another shape."""

    def __init__(self, shapes, shape):
        super().__init__()
        self.parts = nn.ModuleList(
            nn.Linear(torch.Size(s).numel(), torch.Size(shape).numel()) for s in shapes
        )
        self.shape = shape

    def forward(self, *inputs):
        flat = sum(part(i.flatten(1)) for part, i in zip(self.parts, inputs))
        return torch.tanh(flat).unflatten(1, self.shape)


@pytest.mark.parametrize('alpha_shapes', [((1, 3, 1, 1), (6,)), ((), (5, 1)), ((1, 1, 1, 2), (1,))])
def test_levels_may_differ_in_shape_and_channel_dimension(alpha_shapes, device):
    x_shape, *shapes = (3,), (3, 2, 2), (5, 6)
    links = []
    for _ in range(5):
        alphas = [nn.Parameter(0.3 + 0.5 * torch.rand(shape, device=device)) for shape in alpha_shapes]
        bottom, top = Resized([x_shape, shapes[1]], shapes[0]), Resized([shapes[0]], shapes[1])
        links.append(
            [
                Coupling(0, (None, 1), bottom.to(device), alphas[0]),
                Coupling(1, (0,), top.to(device), alphas[1]),
            ]
        )
    x, *start = (torch.randn(2, *shape, device=device) for shape in (x_shape, *shapes))
    parity.check_reversible(links, x, start)


def test_intermediate_results_may_be_differentiated_in_any_order(device):
    """As in supervision of columns."""
    links, x, start = chain_of([Conv() for _ in range(10)], device=device)
    grads = []
    for chain in (StoringChain(), ReversibleChain(links)):
        results, features = [], start
        for link in links:
            features = chain(link, x, features)
            results.append(sum(feature.square().mean() for feature in features))
        for index in (2, 0, 4, 1):
            results[index].backward(retain_graph=True)
        grads.append({i: p.grad for i, p in enumerate(parameters(links))})
        for param in parameters(links):
            param.grad = None
    assert worst_errors(*reversed(grads))[0][0] <= 2e-5


# Errors


@pytest.mark.parametrize(
    'change, message',
    [
        (lambda y: y[:1], r'must return shape \(2, 4, 6, 5\), got \(1, 4, 6, 5\)'),
        (lambda y: y.double(), r'must keep the dtype of its level, torch.float32, got torch.float64'),
    ],
)
def test_a_function_with_another_shape_or_dtype_is_an_error(change, message):
    links, x, start = chain_of([Conv() for _ in range(4)])
    links[1][0].function.register_forward_hook(lambda module, inputs, output: change(output))
    with pytest.raises(ValueError, match=message):
        run_links(ReversibleChain(), links, x, start)


def test_a_function_that_reads_its_own_level_is_an_error():
    links, x, start = chain_of([Conv(), Conv()])
    links[0][0] = links[0][0]._replace(reads=(None, 0))
    with pytest.raises(ValueError, match='must not read level 0'):
        run_links(ReversibleChain(links), links, x, start)


def test_a_function_with_hidden_trainable_tensors_is_an_error():
    links, x, start = chain_of([Conv(), Conv()])
    scale = torch.ones(5, requires_grad=True)
    links[0][1].function.register_forward_hook(lambda module, inputs, output: output * scale)
    with pytest.raises(RuntimeError, match=r'shape \(5,\) that requires a gradient but is neither'):
        run_links(ReversibleChain(links), links, x, start)


def test_a_function_that_keeps_a_second_reference_to_a_parameter_is_an_error_with_this_cause():
    links, x, start = chain_of([Conv(), Conv()])
    weights = [links[0][1].function.layers[0].weight]
    links[0][1].function.register_forward_hook(lambda module, inputs, output: output * weights[0].mean())
    with pytest.raises(RuntimeError, match='Modules with further references to their parameters hide them'):
        run_links(ReversibleChain(links), links, x, start)


@pytest.mark.parametrize('name', ['x', 'start', 'alpha', 'feature', 'parameter'])
def test_modifying_tensors_in_place_before_backward_is_an_error(name, device):
    links, x, start = chain_of([Conv() for _ in range(4)], device=device)
    features = run_links(ReversibleChain(links), links, x, start)
    loss = sum(feature.mean() for feature in features)
    coupling = links[1][0]
    tensors = dict(
        x=x,
        start=start[0],
        alpha=coupling.alpha,
        feature=features[1].detach(),
        parameter=coupling.function.layers[0].weight,
    )
    with torch.no_grad():
        tensors[name].mul_(2)
    with pytest.raises(RuntimeError, match='which backward .* needs, was modified in place'):
        loss.backward()


def test_differentiating_twice_is_an_error():
    links, x, start = chain_of([Conv() for _ in range(4)])
    loss = run_links(ReversibleChain(links), links, x, start)[0].mean()
    with pytest.raises(RuntimeError, match='differentiated twice'):
        torch.autograd.grad(loss, parameters(links), create_graph=True)


# Alphas and memory


@pytest.mark.parametrize('is_announced', [True, False])
def test_an_alpha_too_small_to_invert_is_an_error(is_announced):
    links, x, start = linear_chain(2)
    with torch.no_grad():
        links[1][1].alpha[1] = 1e-6
    with pytest.raises(ValueError, match=r'\|alpha\| = 1.0e-06 cannot be inverted'):
        run_links(ReversibleChain(links if is_announced else ()), links, x, start)


@pytest.mark.parametrize(
    'alphas, bits',
    [
        ([0.5] * 64, 2 * 64),
        ([0.5] * 63 + [1e-3], 2 * 64 + 16),
        ([0.5] * 32 + [0.3] * 32, 4 * 64),
        ([1e-3] * 64, 16 * 64),
    ],
    ids=['0.5', 'one at 1e-3', 'half at 0.3', '1e-3'],
)
def test_two_bits_per_element_and_link_are_kept_and_more_for_smaller_alphas(alphas, bits):
    report = parity.check_reversible(*linear_chain(8, size=64, alpha=torch.tensor(alphas)))
    bits_of_row = 7 * bits + 32 * 64  # 7 links, and the last link's remainder
    assert report.kept_bytes == 2 * 32 * bits_of_row / 8  # 2 levels of 32 rows
