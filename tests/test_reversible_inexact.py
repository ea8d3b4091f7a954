"""Reconstructions that are not exact: on devices for which the CPU must not wait, after growth, overflow."""

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from revcol_mm.ops import ReversibleChain, check_reconstruction, reversible
from revcol_mm.testing import parity, peak_bytes

from .toy_chains import Conv, chain_of, linear_chain, loss_of, parameters, run_links


@pytest.fixture
def asynchronous(monkeypatch):
    """Let a CPU stand in for a device for which the CPU must not wait."""
    monkeypatch.setattr(reversible, '_is_on_cpu', lambda tensor: False)


@pytest.mark.usefixtures('asynchronous')
@pytest.mark.parametrize('link, level', [(2, 1), (0, 0)])
@pytest.mark.parametrize('is_frozen', [False, True])
def test_an_inexact_reconstruction_gives_nan_gradients_and_an_error_in_the_next_forward_pass(
    link, level, is_frozen
):
    """Gradients of all that is computed before the inexact coupling, also if its parameters are frozen."""
    links, x, start = chain_of([Conv() for _ in range(8)])
    coupling, inputs = links[link][level], [tensor.requires_grad_() for tensor in (x, *start)]
    params = [coupling.alpha, *coupling.function.parameters()]
    for param in params:
        param.requires_grad_(not is_frozen)
    loss_of(ReversibleChain(links), links, x, start).backward()
    check_reconstruction()
    assert all(tensor.grad.isfinite().all() for tensor in (*inputs, *parameters(links)))
    loss = loss_of(ReversibleChain(links), links, x, start)
    handle = coupling.function.register_forward_hook(lambda m, i, output: output * (1 + 1e-6))
    loss.backward()
    handle.remove()
    assert all(tensor.grad.isnan().all() for tensor in (x, start[level], *(() if is_frozen else params)))
    with pytest.raises(RuntimeError, match=f'not exact in link {link}, level {level}'):
        loss_of(ReversibleChain(links), links, x, start)
    check_reconstruction()  # the error is raised once


class Shifted(Conv):
    def __init__(self):
        super().__init__()
        self.shift = nn.Parameter(torch.randn(2, 4, 6, 5))

    def forward(self, *inputs):
        return super().forward(*inputs) + self.shift


@pytest.mark.usefixtures('asynchronous')
def test_expanded_gradients_are_checked_without_overwriting_each_other():
    links, x, start = chain_of([Shifted() for _ in range(4)])
    sum(f.sum() for f in run_links(ReversibleChain(links), links, x, start)).backward()
    check_reconstruction()
    assert (links[1][1].function.shift.grad == 1).all()


def test_checks_on_a_device_need_no_copy_of_the_gradients(request):
    links, x, start = linear_chain(2, size=512)

    def peak():
        loss = loss_of(ReversibleChain(links), links, x, start)
        return peak_bytes(lambda: torch.autograd.grad(loss, parameters(links)))

    waiting = peak()
    request.getfixturevalue('asynchronous')
    assert peak() < waiting + 2**18  # a quarter of the weight of one function
    check_reconstruction()


class CountReads(TorchDispatchMode):
    """Counts how often Python reads the value of a tensor, for which it would wait for a GPU."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


@pytest.mark.usefixtures('asynchronous')
def test_backward_does_not_wait_for_the_device():
    links, x, start = chain_of([Conv() for _ in range(8)])
    loss = loss_of(ReversibleChain(links), links, x, start)
    with CountReads() as reads:
        loss.backward()
    assert reads.count == 0
    with reads:
        loss.item()
    assert reads.count == 1
    check_reconstruction()


GROWTH = {torch.float32: 60.0, torch.float16: 60.0, torch.bfloat16: 60.0, torch.float64: 15.0}


def growing_chain(num_links, device, dtype=torch.float32):
    """Values grow by a factor per link whose square is just below the limit: 2^12, in float64 2^8."""
    alpha = torch.full((3,), GROWTH[dtype], device=device, dtype=dtype)
    links, x, start = linear_chain(num_links, alpha=alpha, device=device, dtype=dtype)
    return links, x, [0.01 * level for level in start]  # float16 overflows at 65504


@pytest.mark.parametrize('dtype', GROWTH, ids=str)
def test_growth_by_less_than_2_to_the_12_is_exact(dtype, device):
    links, x, start = growing_chain(6, device, dtype)
    for link in links[3:]:
        for coupling in link:
            coupling.alpha.data.fill_(0.9)  # loses bits, unlike 60
    report = parity.check_reversible(links, x, start, tolerance=8 * torch.finfo(dtype).eps)
    assert report.output_error == 0


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_growth_beyond_2_to_the_12_is_an_error_in_every_attempt(dtype, device):
    links, x, start = growing_chain(8, device, dtype)
    loss = sum(feature.sum() for feature in run_links(ReversibleChain(links), links, x, start))
    for _ in range(2):
        with pytest.raises(RuntimeError, match=r'not exact.*grown to about 2\^12 times'):  # noqa: PT012
            loss.backward(retain_graph=True)
            check_reconstruction()


@pytest.mark.parametrize('num_links', [2, 3])  # the last link overflows, or an earlier one
@pytest.mark.parametrize('levels', [(0, 1), (0,)])  # in the loss; a level outside of it has no gradient
@pytest.mark.parametrize('is_asynchronous', [False, True])
def test_an_overflow_gives_nonfinite_gradients_but_no_error(
    num_links, levels, is_asynchronous, device, request
):
    """As in a plain chain: a gradient scaler must be able to skip the step."""
    if is_asynchronous:
        request.getfixturevalue('asynchronous')
    links, x, start = growing_chain(num_links, device)
    for coupling in links[1]:
        coupling.alpha.data.fill_(3e38)
    outputs = run_links(ReversibleChain(links), links, x, start)
    sum(outputs[level].sum() for level in levels).backward()
    check_reconstruction()
    grads = [param.grad for param in parameters(links) if param.grad is not None]
    assert not all(grad.isfinite().all() for grad in grads)
