"""The reversible chain of ops/, with functions that have nothing to do with images."""

import doctest

import pytest
import torch
from torch import nn

from revcol_mm.ops import Coupling, ReversibleChain, couple, uncouple
from revcol_mm.testing import parity


class Scaled(nn.Module):
    """An F that has nothing to do with images."""

    def __init__(self, size):
        super().__init__()
        self.linear = nn.Linear(size, size)

    def forward(self, *inputs):
        return torch.tanh(self.linear(sum(inputs)))


def toy_chain(num_links, size=3, dtype=torch.float64, device='cpu'):
    """Three levels; level l reads x or the level below, and the level above of the link before."""
    modules = nn.ModuleList([Scaled(size) for _ in range(3 * num_links)]).to(device, dtype)
    reads = [(None, 1), (0, 2), (1,)]

    def links(alphas):
        return [
            [Coupling(level, reads[level], modules[3 * i + level], alphas[i, level]) for level in range(3)]
            for i in range(num_links)
        ]

    return modules, links


def test_gradcheck_in_float64(device):
    modules, links = toy_chain(num_links=3, device=device)
    params = list(modules.parameters())

    def run(alphas, x, *rest):
        features = list(rest[:3])
        chain = ReversibleChain(num_links=3)
        for link in links(alphas):
            features = chain(link, x, features)
        return tuple(features)

    options = dict(dtype=torch.float64, device=device)
    alphas = torch.rand(3, 3, 3, **options).add_(0.3).requires_grad_()
    inputs = [torch.randn(2, 3, **options, requires_grad=True) for _ in range(4)]
    assert torch.autograd.gradcheck(run, (alphas, *inputs, *params))


def test_one_call_checks_a_design_of_one_s_own(device):
    assert doctest.testmod(parity).failed == 0
    _, links = toy_chain(num_links=4, device=device)
    options = dict(dtype=torch.float64, device=device)
    alphas = (torch.rand(4, 3, 3, **options) + 0.3).requires_grad_()
    x, *features = (torch.randn(2, 3, **options) for _ in range(4))
    report = parity.check_reversible(links(alphas), x, features, tolerance=1e-9)
    assert report.kept_bytes > 0

    broken = links(alphas)
    broken[1][2].function.register_forward_hook(lambda m, i, o: o + 1e-3 * torch.is_grad_enabled())
    with pytest.raises(AssertionError, match='gradient_error='):
        parity.check_reversible(broken, x, features)


def test_couple_and_uncouple_are_inverse():
    _, links = toy_chain(num_links=4)
    alphas = torch.rand(4, 3, 3, dtype=torch.float64) + 0.3
    x, *features = (torch.randn(2, 3, dtype=torch.float64) for _ in range(4))
    chain = [coupling for link in links(alphas) for coupling in link]
    with torch.no_grad():
        back = uncouple(chain, x, couple(chain, x, features))
    for actual, expected in zip(back, features):
        torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


def test_a_chain_that_did_not_run_to_its_end_is_an_error():
    _, links = toy_chain(num_links=2)
    alphas = torch.full((2, 3, 3), 0.5, dtype=torch.float64)
    chain = ReversibleChain(num_links=2)
    x, *features = (torch.randn(2, 3, dtype=torch.float64, requires_grad=True) for _ in range(4))
    features = chain(links(alphas)[0], x, features)
    with pytest.raises(RuntimeError, match='no more than 1 have run'):
        features[0].sum().backward()


def test_more_links_than_announced_are_an_error():
    _, links = toy_chain(num_links=2)
    alphas = torch.full((2, 3, 3), 0.5, dtype=torch.float64)
    chain = ReversibleChain(num_links=1)
    x, *features = (torch.randn(2, 3, dtype=torch.float64) for _ in range(4))
    features = chain(links(alphas)[0], x, features)
    with pytest.raises(RuntimeError, match='the 1 links'):
        chain(links(alphas)[1], x, features)


def test_a_function_whose_gradients_would_get_lost_is_an_error():
    _, links = toy_chain(num_links=1)
    outsider = torch.ones(3, dtype=torch.float64, requires_grad=True)
    (link,) = links(torch.full((1, 3, 3), 0.5, dtype=torch.float64))
    forward = link[1].function.forward
    link[1].function.forward = lambda *inputs: forward(*inputs) * outsider
    x, *features = (torch.randn(2, 3, dtype=torch.float64) for _ in range(4))
    with pytest.raises(RuntimeError, match=r'\(3,\) that needs a gradient'):
        sum(f.sum() for f in ReversibleChain(num_links=1)(link, x, features)).backward()


def test_an_alpha_too_small_to_be_undone_is_an_error():
    _, links = toy_chain(num_links=2)
    alphas = torch.full((2, 3, 3), 0.5, dtype=torch.float64)
    alphas[1, 2, 1] = 1e-6
    chain = ReversibleChain(num_links=2)
    x, *features = (torch.randn(2, 3, dtype=torch.float64, requires_grad=True) for _ in range(4))
    features = chain(links(alphas)[0], x, features)
    with pytest.raises(ValueError, match='1.0e-06'):
        chain(links(alphas)[1], x, features)


def growing_chain(num_links, device):
    """From link to link its values grow about 170-fold, 170^2 being just below 2^15."""
    _, links = toy_chain(num_links, dtype=torch.float32, device=device)
    alphas = torch.full((num_links, 3, 3), 170.0, device=device)
    return links(alphas), [torch.randn(2, 3, device=device, requires_grad=True) for _ in range(4)]


def test_growth_that_the_grid_holds_is_exact(device):
    links, (x, *features) = growing_chain(3, device)
    assert parity.check_reversible(links, x, features).gradient_error < 1e-6


def test_growth_beyond_the_grid_is_an_error_in_the_next_link_or_in_backward(device):
    links, (x, *features) = growing_chain(4, device)
    chain, unfinished = ReversibleChain(num_links=4), ReversibleChain(num_links=5)
    outputs, others = features, features
    for link in links:
        outputs, others = chain(link, x, outputs), unfinished(link, x, others)
    loss = sum(output.sum() for output in outputs)
    for _ in range(2):  # an error that was caught does not make the next attempt pass
        with pytest.raises(RuntimeError, match='level 0 .* has grown to'):
            loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match='level 0 .* has grown to'):
        unfinished(links[0], x, others)


@pytest.mark.parametrize('num_links', [2, 3])  # the last link overflows, or one before it
def test_values_that_overflow_are_no_error_but_make_gradients_that_are_not_finite(num_links, device):
    """As in a plain chain, so that a gradient scaler skips the step."""
    links, (x, *features) = growing_chain(num_links, device)
    links[1] = [coupling._replace(alpha=torch.full((3,), 3e38, device=device)) for coupling in links[1]]
    chain, outputs = ReversibleChain(num_links), features
    for link in links:
        outputs = chain(link, x, outputs)
    sum(output.sum() for output in outputs).backward()
    assert not all(feature.grad.isfinite().all() for feature in features)


def test_what_is_kept_is_two_bits_an_element_and_column():
    _, links = toy_chain(num_links=10, size=64, dtype=torch.float32)
    alphas = torch.full((10, 3, 64), 0.5)
    chain = ReversibleChain(num_links=10)
    x, *features = (torch.randn(32, 64, requires_grad=True) for _ in range(4))
    for link in links(alphas):
        features = chain(link, x, features)
    num_elements = sum(feature.numel() for feature in features)
    assert chain.kept_bytes == num_elements * (9 * 2 / 8 + 4)  # the last link's result: its low words
