"""The reversible chain of ops/, with functions that have nothing to do with images."""

import doctest
import random

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize
from torch.utils._python_dispatch import TorchDispatchMode

from revcol_mm.ops import Coupling, ReversibleChain, check_reconstruction, couple, reversible, uncouple
from revcol_mm.testing import StoringChain, parity, worst_errors


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


def run(chain, links, x, features):
    for link in links:
        features = chain(link, x, features)
    return features


def chain_of(
    functions, reads=((None, 1), (0,)), shapes=((2, 4, 6, 5),) * 2, alpha_shape=(1, 4, 1, 1), device='cpu'
):
    """Links of two levels, x and what they start from; ``functions`` has one for each coupling."""
    alphas = [nn.Parameter(0.3 + 0.5 * torch.rand(alpha_shape, device=device)) for _ in functions]
    couplings = [
        Coupling(i % 2, reads[i % 2], function, alpha)
        for i, (function, alpha) in enumerate(zip(functions, alphas))
    ]
    links = [couplings[i : i + 2] for i in range(0, len(couplings), 2)]
    x, *start = (torch.randn(shape, device=device) for shape in (shapes[0], *shapes))
    return links, x, start


def loss_of(chain, links, x, features):
    return sum(feature.square().mean() for feature in run(chain, links, x, features))


def parameters(links):
    couplings = [coupling for link in links for coupling in link]
    return [p for c in couplings for p in (c.alpha, *c.function.parameters()) if p.requires_grad]


def same_gradients(links, x, start, tolerance=2e-5):
    """Compare with the storing chain."""
    grads = []
    for chain in (StoringChain(), ReversibleChain(links)):
        torch.manual_seed(0)
        loss = loss_of(chain, links, x, start)
        found = torch.autograd.grad(loss, parameters(links), allow_unused=True)
        grads.append(dict(enumerate(found)))
    error, name = worst_errors(*reversed(grads))[0]
    assert error <= tolerance, name


class Conv(nn.Module):
    def __init__(self, channels=4, *more):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1), *more)

    def forward(self, *inputs):
        return self.layers(sum(inputs)).tanh()


def test_gradcheck_in_float64(device):
    modules, links = toy_chain(num_links=3, device=device)
    params = list(modules.parameters())

    def outputs(alphas, x, *rest):
        return tuple(run(ReversibleChain(), links(alphas), x, rest[:3]))

    options = dict(dtype=torch.float64, device=device)
    alphas = torch.rand(3, 3, 3, **options).add_(0.3).requires_grad_()
    inputs = [torch.randn(2, 3, **options, requires_grad=True) for _ in range(4)]
    assert torch.autograd.gradcheck(outputs, (alphas, *inputs, *params))


def test_one_call_checks_a_design_of_one_s_own(device):
    assert doctest.testmod(parity).failed == 0
    _, links = toy_chain(num_links=4, device=device)
    options = dict(dtype=torch.float64, device=device)
    alphas = (torch.rand(4, 3, 3, **options) + 0.3).requires_grad_()
    x, *features = (torch.randn(2, 3, **options) for _ in range(4))
    report = parity.check_reversible(links(alphas), x, features, tolerance=1e-9)
    assert report.kept_bytes > 0

    broken = links(alphas)
    broken[1][2].function.register_forward_hook(lambda m, i, o: o + 1e-3 * random.random())
    with pytest.raises(RuntimeError, match='not exact in link 1, level 2: either Scaled has not'):
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


def test_plain_chains_make_no_float64(device):
    links, x, start = chain_of([Conv().to(device) for _ in range(6)], device=device)
    dtypes = set()

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            dtypes.update(
                t.dtype for t in (result if isinstance(result, tuple) else [result]) if hasattr(t, 'dtype')
            )
            return result

    with Watch():
        loss_of(couple, links, x, start).backward()
    assert dtypes == {torch.float32}


# Links of any design.


def test_levels_are_updated_in_any_order_some_twice_and_some_not_at_all(device):
    """Top-down: each level reads the one above as it has just become."""
    couplings = []
    for i in range(6):
        order = [2, 1, 0] if i % 3 == 0 else [2, 1, 2] if i % 3 == 1 else [1]
        couplings.append(
            [
                Coupling(level, (None,) if level == 2 else (level + 1, None), Conv().to(device), alpha)
                for level in order
                for alpha in [nn.Parameter(0.3 + 0.5 * torch.rand(1, 4, 1, 1, device=device))]
            ]
        )
    x, *start = (torch.randn(2, 4, 6, 5, device=device) for _ in range(4))
    assert parity.check_reversible(couplings, x, start).gradient_error <= 2e-5


class Resized(nn.Module):
    """From matrices or sequences of one shape to those of another."""

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
def test_levels_differ_in_shape_and_module_and_alphas_in_shape(alpha_shapes, device):
    shapes = [(3, 2, 2), (5, 6)]
    reads = [(None, 1), (0,)]
    links = [
        [
            Coupling(
                level,
                reads[level],
                Resized([(3,) if r is None else shapes[r] for r in reads[level]], shapes[level]).to(device),
                nn.Parameter(0.3 + 0.5 * torch.rand(alpha_shapes[level], device=device)),
            )
            for level in (0, 1)
        ]
        for _ in range(5)
    ]
    x, *start = (torch.randn(2, *shape, device=device) for shape in ((3,), *shapes))
    assert parity.check_reversible(links, x, start).gradient_error <= 2e-5


def test_a_function_that_returns_another_shape_or_type_is_an_error():
    links, x, start = chain_of([Conv() for _ in range(4)])
    wrong = [lambda *inputs: sum(inputs)[:1], lambda *inputs: sum(inputs).double()]
    for function, message in zip(
        wrong, (r'returns \(1, 4, 6, 5\) for a level of \(2,', 'makes torch.float64 of a')
    ):
        last = links[1][0]._replace(function=function)
        with pytest.raises(ValueError, match=message):
            run(ReversibleChain(), [links[0], [last]], x, start)


def test_a_function_that_reads_its_own_level_is_an_error():
    links, x, start = chain_of([Conv(), Conv()], reads=((None, 0), (0,)))
    with pytest.raises(ValueError, match='level 0 reads it, so it cannot be undone'):
        run(ReversibleChain(links), links, x, start)


def test_results_of_links_may_be_used_and_differentiated_in_any_order(device):
    """As supervision of columns does, also where the links after one get no gradient."""
    links, x, start = chain_of([Conv().to(device) for _ in range(10)], device=device)
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


# What went wrong in silence, once: each is right, or refused by name.


def test_hooks_on_parameters_run_once():
    links, x, start = chain_of([Conv() for _ in range(4)])
    links[0][0].function.layers[0].weight.register_hook(lambda grad: 0.5 * grad)
    same_gradients(links, x, start)


def test_links_return_any_memory_format():
    class Strided(Conv):
        def forward(self, *inputs):
            y = super().forward(*inputs)
            return y.contiguous(memory_format=random.choice([torch.channels_last, torch.contiguous_format]))

    links, x, start = chain_of([Strided() for _ in range(32)])
    random.seed(0)
    report = parity.check_reversible(links, x, start)
    assert report.gradient_error <= 2e-5


@pytest.mark.parametrize('what', ['start', 'x', 'alpha'])
def test_what_backward_needs_may_not_be_changed_in_place(what):
    links, x, start = chain_of([Conv() for _ in range(4)])
    loss = loss_of(ReversibleChain(links), links, x, start)
    with torch.no_grad():
        dict(start=start[0], x=x, alpha=links[1][0].alpha)[what].mul_(2)
    with pytest.raises(
        RuntimeError, match='which backward through a reversible chain needs, was changed in place'
    ):
        loss.backward()


def test_evaluation_mode_between_forward_and_backward_changes_nothing():
    links, x, start = chain_of([Conv(4, nn.Dropout(0.5)) for _ in range(6)])
    functions = [coupling.function for link in links for coupling in link]

    def switch(loss):
        for function in functions:
            function.eval()

    grads = []
    for chain in (StoringChain(), ReversibleChain(links)):
        for function in functions:
            function.train()
        torch.manual_seed(0)
        loss = loss_of(chain, links, x, start)
        switch(loss)
        grads.append(dict(enumerate(torch.autograd.grad(loss, parameters(links)))))
        assert not any(function.training for function in functions)
    assert worst_errors(*reversed(grads))[0][0] <= 2e-5


def test_freezing_between_forward_and_backward_is_as_in_a_plain_chain():
    links, x, start = chain_of([Conv() for _ in range(4)])
    param = links[1][1].function.layers[0].weight
    for chain in (couple, ReversibleChain(links)):
        loss = loss_of(chain, links, x, start)
        param.requires_grad_(False)
        loss.backward()
        assert param.grad is None
        param.requires_grad_(True)


def test_parameters_of_functional_call_are_those_that_get_gradients():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            links, self.x, self.start = chain_of([Conv() for _ in range(6)])
            self.functions = nn.ModuleList(c.function for link in links for c in link)
            self.alphas = nn.ParameterList(c.alpha for link in links for c in link)

        def forward(self, is_reversible):
            functions, alphas = self.functions, list(self.alphas)
            links = [
                [
                    Coupling(level, ((None, 1), (0,))[level], functions[i + level], alphas[i + level])
                    for level in (0, 1)
                ]
                for i in range(0, 6, 2)
            ]
            return loss_of(
                ReversibleChain(links) if is_reversible else StoringChain(), links, self.x, self.start
            )

    model = Model()
    params = {
        name: (2 * param.detach()).requires_grad_() for name, param in model.functions.named_parameters()
    }
    named = {f'functions.{name}': param for name, param in params.items()}
    grads = []
    for is_reversible in (False, True):
        loss = torch.func.functional_call(model, named, (is_reversible,))
        grads.append(dict(zip(params, torch.autograd.grad(loss, list(params.values())))))
    assert worst_errors(*reversed(grads))[0][0] <= 2e-5


def test_cached_parametrizations_are_refused_or_right():
    class Doubled(nn.Module):
        def forward(self, weight):
            return 2 * weight

    links, x, start = chain_of([Conv() for _ in range(4)])
    shared = links[0][0].function
    parametrize.register_parametrization(shared.layers[0], 'weight', Doubled())
    links = [[link[0]._replace(function=shared), link[1]] for link in links]
    same_gradients(links, x, start)
    with parametrize.cached(), pytest.raises(RuntimeError, match='neither among its inputs nor'):
        run(ReversibleChain(links), links, x, start)


@pytest.mark.parametrize('kind', ['batch norm', 'spectral norm'])
def test_functions_with_a_state_move_it_once(kind):
    def build():
        torch.manual_seed(0)
        if kind == 'batch norm':
            return chain_of([Conv(4, nn.BatchNorm2d(4)) for _ in range(6)])
        functions = [Conv() for _ in range(6)]
        for function in functions:
            parametrizations.spectral_norm(function.layers[0])
        return chain_of(functions)

    outcomes = []
    for is_reversible in (False, True):
        links, x, start = build()
        chain = ReversibleChain(links) if is_reversible else StoringChain()
        loss_of(chain, links, x, start).backward()
        buffers = [buffer for link in links for coupling in link for buffer in coupling.function.buffers()]
        outcomes.append([*(param.grad for param in parameters(links)), *buffers])
    torch.testing.assert_close(*outcomes, rtol=2e-5, atol=1e-7)


def test_kernels_that_depend_on_whether_there_is_a_graph_are_the_same_in_both_passes():
    """nn.MultiheadAttention has a fast path in evaluation mode without gradients."""

    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)

        def forward(self, *inputs):
            return self.layer(sum(inputs))

    links, x, start = chain_of(
        [Attention().eval() for _ in range(6)], shapes=((2, 5, 8),) * 2, alpha_shape=(8,)
    )
    same_gradients(links, x, start)


@pytest.mark.parametrize('draw', [random.random, lambda: torch.rand((), generator=GENERATOR)])
def test_random_numbers_that_are_not_replayed_are_an_error(draw):
    class Noisy(Conv):
        def forward(self, *inputs):
            return super().forward(*inputs) * draw()

    links, x, start = chain_of([*(Conv() for _ in range(3)), Noisy()])
    with pytest.raises(
        RuntimeError, match=r'not exact in link 1, level 1.*Noisy has not computed the same bits'
    ):
        loss_of(ReversibleChain(links), links, x, start).backward()


GENERATOR = torch.Generator()


def test_other_settings_of_kernels_are_an_error_that_names_them(monkeypatch):
    links, x, start = chain_of([Conv() for _ in range(4)])
    loss = loss_of(ReversibleChain(links), links, x, start)
    monkeypatch.setattr(
        links[0][1].function, 'forward', lambda *inputs: 1.001 * sum(inputs)
    )  # in place of TF32
    torch.use_deterministic_algorithms(True)
    try:
        with pytest.raises(
            RuntimeError, match=r'not exact .*other settings were made, torch\.use_deterministic'
        ):
            loss.backward()
    finally:
        torch.use_deterministic_algorithms(False)


def test_states_of_generators_are_kept_for_functions_that_draw_only():
    links, x, start = chain_of([Conv(), Conv(4, nn.Dropout(0.5))])
    outputs = run(ReversibleChain(links), links, x, start)
    steps = [output.grad_fn.run for output in outputs]
    assert steps[0].call.random_states is None and steps[1].call.random_states is not None


class Counts(nn.Module):
    """Counts its calls in a buffer that two of its parts hold."""

    def __init__(self):
        super().__init__()
        self.parts = nn.ModuleList([nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)])
        calls = torch.zeros(())
        for part in self.parts:
            part.register_buffer('calls', calls)

    def forward(self, *inputs):
        self.parts[0].calls += 1
        return self.parts[1].calls * self.parts[1](self.parts[0](sum(inputs)))


def test_a_buffer_that_modules_share_moves_once_and_stays_shared():
    links, x, start = chain_of([Counts() for _ in range(4)])
    loss_of(ReversibleChain(links), links, x, start).backward()
    for link in links:
        for coupling in link:
            first, second = coupling.function.parts
            assert first.calls is second.calls and first.calls == 1


def test_off_the_cpu_nothing_waits_gradients_are_nan_and_the_next_forward_pass_raises_the_error(monkeypatch):
    monkeypatch.setattr(reversible, '_is_read_at_once', lambda tensor: False)
    links, x, start = chain_of([Conv() for _ in range(8)])
    loss_of(ReversibleChain(links), links, x, start).backward()
    check_reconstruction()
    assert all(param.grad.isfinite().all() for param in parameters(links))
    loss = loss_of(ReversibleChain(links), links, x, start)
    noise = iter([1 + 1e-6] * 2)
    links[2][1].function.register_forward_hook(lambda module, inputs, output: output * next(noise))
    loss.backward()
    assert links[2][1].alpha.grad.isnan().all()
    for param in links[2][1].function.parameters():
        assert param.grad.isnan().all()
    with pytest.raises(RuntimeError, match='not exact in link 2, level 1'):
        loss_of(ReversibleChain(links), links, x, start)
    check_reconstruction()


class ReadValues(TorchDispatchMode):
    """Counts values of tensors that Python asks for, each of which is a wait for a GPU."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def test_off_the_cpu_backward_reads_no_value(monkeypatch):
    monkeypatch.setattr(reversible, '_is_read_at_once', lambda tensor: False)
    links, x, start = chain_of([Conv() for _ in range(8)])
    loss = loss_of(ReversibleChain(links), links, x, start)
    with ReadValues() as values:
        loss.backward()
    assert values.count == 0
    with values:
        loss.item()
    assert values.count == 1
    check_reconstruction()


def test_reading_what_backward_has_found_raises_its_errors_once(monkeypatch):
    finite, nan = torch.tensor(0.0), torch.tensor(torch.nan)
    reports = [(finite, finite, 'fine'), (nan, nan, 'an overflow'), (nan, finite, 'not exact')]
    monkeypatch.setattr(reversible, '_unread', reports)
    links, x, start = chain_of([Conv() for _ in range(4)])
    with pytest.raises(RuntimeError, match='not exact'):
        run(ReversibleChain(links), links, x, start)
    run(ReversibleChain(links), links, x, start)
    check_reconstruction()


def test_a_function_whose_gradients_would_get_lost_is_an_error():
    _, links = toy_chain(num_links=1)
    outsider = torch.ones(3, dtype=torch.float64, requires_grad=True)
    (link,) = links(torch.full((1, 3, 3), 0.5, dtype=torch.float64))
    forward = link[1].function.forward
    link[1].function.forward = lambda *inputs: forward(*inputs) * outsider
    x, *features = (torch.randn(2, 3, dtype=torch.float64) for _ in range(4))
    with pytest.raises(RuntimeError, match=r'\(3,\) that needs a gradient'):
        ReversibleChain()(link, x, features)


# Alphas, growth, memory.


def test_an_alpha_too_small_to_be_undone_is_an_error():
    _, links = toy_chain(num_links=2)
    alphas = torch.full((2, 3, 3), 0.5, dtype=torch.float64)
    alphas[1, 2, 1] = 1e-6
    x, *features = (torch.randn(2, 3, dtype=torch.float64, requires_grad=True) for _ in range(4))
    for link in (links(alphas), []):  # read at once, or link by link
        with pytest.raises(ValueError, match='1.0e-06'):
            run(ReversibleChain(link), links(alphas), x, features)


def test_few_small_alphas_among_many_take_no_more_bits_for_the_others(device):
    _, links = toy_chain(num_links=8, size=64, dtype=torch.float32, device=device)
    alphas = torch.full((8, 3, 64), 0.5, device=device)
    alphas[:, :, 7] = 1e-3
    x, *features = (torch.randn(32, 64, device=device) for _ in range(4))
    report = parity.check_reversible(links(alphas.requires_grad_()), x, features)
    assert report.kept_bytes == 3 * 32 * (64 * (7 * 2 / 8 + 4) + 7 * 2)


def growing_chain(num_links, device):
    """From link to link its values grow about 60-fold, 60^2 being just below 2^12."""
    _, links = toy_chain(num_links, dtype=torch.float32, device=device)
    alphas = torch.full((num_links, 3, 3), 60.0, device=device)
    return links(alphas), [torch.randn(2, 3, device=device, requires_grad=True) for _ in range(4)]


def test_growth_that_the_grid_holds_is_exact(device):
    links, (x, *features) = growing_chain(3, device)
    assert parity.check_reversible(links, x, features).gradient_error < 1e-6


def test_growth_beyond_the_grid_is_an_error(device):
    def backward(loss):
        loss.backward(retain_graph=True)
        check_reconstruction()

    links, (x, *features) = growing_chain(8, device)
    loss = sum(output.sum() for output in run(ReversibleChain(links), links, x, features))
    for _ in range(2):  # an error that was caught does not make the next attempt pass
        with pytest.raises(RuntimeError, match=r'not exact.*grown to 2\^12 times'):
            backward(loss)


@pytest.mark.parametrize('num_links', [2, 3])  # the last link overflows, or one before it
def test_values_that_overflow_are_no_error_but_make_gradients_that_are_not_finite(num_links, device):
    """As in a plain chain, so that a gradient scaler skips the step."""
    links, (x, *features) = growing_chain(num_links, device)
    links[1] = [coupling._replace(alpha=torch.full((3,), 3e38, device=device)) for coupling in links[1]]
    sum(output.sum() for output in run(ReversibleChain(links), links, x, features)).backward()
    check_reconstruction()
    assert not all(feature.grad.isfinite().all() for feature in features)


def test_what_is_kept_is_two_bits_an_element_and_column():
    _, links = toy_chain(num_links=10, size=64, dtype=torch.float32)
    alphas = torch.full((10, 3, 64), 0.5)
    x, *features = (torch.randn(32, 64, requires_grad=True) for _ in range(4))
    chain = ReversibleChain(links(alphas))
    features = run(chain, links(alphas), x, features)
    num_elements = sum(feature.numel() for feature in features)
    assert chain.kept_bytes == num_elements * (9 * 2 / 8 + 4)  # the last link's result: its low bits
