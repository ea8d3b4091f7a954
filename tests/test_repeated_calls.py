"""Backward of a reversible chain calls every function again: state, random numbers and hooks of functions."""

import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

from revcol_mm.ops import ReversibleChain, couple
from revcol_mm.testing import StoringChain, parity

from .toy_chains import Conv, chain_of, loss_of, parameters, run_links


def test_hooks_on_parameters_run_once():
    links, x, start = chain_of([Conv() for _ in range(4)])
    links[0][0].function.layers[0].weight.register_hook(lambda grad: 0.5 * grad)
    parity.check_reversible(links, x, start)


def test_results_may_have_any_memory_format():
    class Strided(Conv):
        def forward(self, *inputs):
            y = super().forward(*inputs)
            return y.contiguous(memory_format=random.choice([torch.channels_last, torch.contiguous_format]))

    random.seed(0)
    parity.check_reversible(*chain_of([Strided() for _ in range(32)]))


def test_parameters_frozen_before_backward_get_no_gradient():
    """As in a plain chain."""
    links, x, start = chain_of([Conv() for _ in range(4)])
    param = links[1][1].function.layers[0].weight
    for chain in (couple, ReversibleChain(links)):
        loss = loss_of(chain, links, x, start)
        param.requires_grad_(False)
        loss.backward()
        assert param.grad is None
        param.requires_grad_(True)


def test_parametrized_weights_are_exact_and_cached_ones_refused():
    class Doubled(nn.Module):
        def forward(self, weight):
            return 2 * weight

    links, x, start = chain_of([Conv() for _ in range(4)])
    shared = links[0][0].function
    parametrize.register_parametrization(shared.layers[0], 'weight', Doubled())
    links = [[link[0]._replace(function=shared), link[1]] for link in links]
    parity.check_reversible(links, x, start)
    with parametrize.cached(), pytest.raises(RuntimeError, match='neither one of its inputs nor'):
        run_links(ReversibleChain(links), links, x, start)


def conv_with_batch_norm():
    return Conv(nn.BatchNorm2d(4))


def conv_with_spectral_norm():
    function = Conv()
    parametrizations.spectral_norm(function.layers[0])
    return function


class Reassigning(Conv):
    """Counts its calls in a buffer that every call replaces."""

    def __init__(self):
        super().__init__()
        self.register_buffer('calls', torch.ones(()))

    def forward(self, *inputs):
        self.calls = self.calls + 1
        return super().forward(*inputs) / self.calls


@pytest.mark.parametrize('build', [conv_with_batch_norm, conv_with_spectral_norm, Reassigning])
def test_buffers_are_updated_once(build):
    outcomes = []
    for make_chain in (lambda links: StoringChain(), ReversibleChain):
        torch.manual_seed(0)
        links, x, start = chain_of([build() for _ in range(6)])
        loss_of(make_chain(links), links, x, start).backward()
        buffers = [buffer for link in links for coupling in link for buffer in coupling.function.buffers()]
        outcomes.append([*(param.grad for param in parameters(links)), *buffers])
    torch.testing.assert_close(*outcomes, rtol=2e-5, atol=1e-7)


class Counting(Conv):
    """Counts its calls in a buffer that two of its modules share."""

    def __init__(self):
        super().__init__(nn.Conv2d(4, 4, 1))
        calls = torch.zeros(())
        for layer in self.layers:
            layer.register_buffer('calls', calls)

    def forward(self, *inputs):
        self.layers[0].calls += 1
        return self.layers[1].calls * super().forward(*inputs)


def test_a_buffer_shared_by_modules_is_updated_once_and_stays_shared():
    links, x, start = chain_of([Counting() for _ in range(4)])
    loss_of(ReversibleChain(links), links, x, start).backward()
    for link in links:
        for coupling in link:
            first, second = coupling.function.layers
            assert first.calls is second.calls
            assert first.calls == 1


def test_functions_with_another_kernel_without_gradients_are_exact():
    """nn.MultiheadAttention has a fast path for evaluation mode without gradients."""

    class Attention(nn.TransformerEncoderLayer):
        def forward(self, *inputs):
            return super().forward(sum(inputs))

    functions = [Attention(8, 2, 16, batch_first=True).eval() for _ in range(6)]
    parity.check_reversible(*chain_of(functions, shape=(2, 5, 8), alpha_shape=(8,)))


@pytest.mark.parametrize('kind', [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_functions_are_exact(kind, device):
    """They keep a second list of their parameters, but update it themselves."""

    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell = kind(8, 4, num_layers=2, bidirectional=True, batch_first=True)

        def forward(self, *inputs):
            return self.cell(sum(inputs))[0]

    functions = [Recurrent() for _ in range(6)]
    parity.check_reversible(*chain_of(functions, shape=(2, 5, 8), alpha_shape=(8,), device=device))


GENERATOR = torch.Generator()


@pytest.mark.parametrize('draw', [random.random, np.random.rand, lambda: torch.rand((), generator=GENERATOR)])
def test_random_numbers_from_other_generators_are_an_error(draw):
    class Noisy(Conv):
        def forward(self, *inputs):
            return super().forward(*inputs) * draw()

    links, x, start = chain_of([*(Conv() for _ in range(3)), Noisy()])
    with pytest.raises(RuntimeError, match=r'not exact in link 1, level 1.*Noisy gave another result'):
        loss_of(ReversibleChain(links), links, x, start).backward()


@pytest.mark.parametrize(
    'name, change',
    [
        ('torch.use_deterministic_algorithms', lambda: torch.use_deterministic_algorithms(True)),
        ('torch.backends.cuda.matmul.fp32_precision', lambda: torch.set_float32_matmul_precision('high')),
        ('torch.backends.mkldnn.matmul.fp32_precision', lambda: torch.set_float32_matmul_precision('high')),
    ],
)
def test_kernel_settings_changed_before_backward_are_named_in_the_error(name, change, monkeypatch):
    links, x, start = chain_of([Conv() for _ in range(4)])
    loss = loss_of(ReversibleChain(links), links, x, start)
    # Stands in for another result by another kernel.
    monkeypatch.setattr(links[0][1].function, 'forward', lambda *inputs: 1.001 * sum(inputs))
    change()
    try:
        with pytest.raises(RuntimeError, match=f'settings were changed .*{name}'):
            loss.backward()
    finally:
        torch.use_deterministic_algorithms(False)
        torch.set_float32_matmul_precision('highest')


def test_generator_states_are_kept_only_for_functions_that_draw():
    links, x, start = chain_of([Conv(), Conv(nn.Dropout(0.5))])
    outputs = run_links(ReversibleChain(links), links, x, start)
    calls = [output.grad_fn.run.call for output in outputs]
    assert calls[0].random_states is None
    assert calls[1].random_states is not None
