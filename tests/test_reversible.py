"""Reversible training of RevCol gives the same outputs and gradients as storing all activations."""

import copy
import pickle
from collections import defaultdict
from contextlib import nullcontext

import pytest
import torch

from revcol_mm import RevCol
from revcol_mm.testing import StoringChain, gradients, worst_errors

WIDTHS = dict(channels=(8, 16, 24, 32), layers=(1, 1, 2, 1))
IMAGE = (2, 3, 64, 96)


def set_alphas(model, alphas):
    """Set all alphas to a number, or to random values: around 0.5, or 0.5 with a fifth of them at 1e-3."""
    generator = torch.Generator().manual_seed(1)
    for name, param in model.named_parameters():
        if 'alpha' not in name:
            continue
        if alphas == 'spread':
            value = 0.5 + 0.2 * torch.randn(param.shape, generator=generator)
        elif alphas == 'some at 1e-3':
            value = torch.where(torch.rand(param.shape, generator=generator) < 0.2, 1e-3, 0.5)
        else:
            value = torch.full(param.shape, alphas)
        param.data.copy_(value)


def pair(alphas=0.5, num_columns=4, device='cpu', **kwargs):
    """Return the same model twice: one that stores all activations, and a reversible one."""
    kwargs = {'arch': dict(WIDTHS, num_columns=num_columns), 'layer_scale_init_value': 0.3, **kwargs}
    storing = RevCol(**kwargs, save_memory=True)
    storing.chain_type = lambda links: StoringChain()
    set_alphas(storing, alphas)
    reversible = RevCol(**kwargs, save_memory=True)
    reversible.load_state_dict(storing.state_dict())
    return storing.to(device), reversible.to(device)


def output_weights(model, image):
    with torch.no_grad():
        outputs = copy.deepcopy(model).eval()(image)
    generator = torch.Generator().manual_seed(2)
    return [torch.randn(output.shape, generator=generator).to(output) for output in outputs]


def assert_same(actual, expected, tolerance):
    """Compare gradients."""
    error, name = worst_errors(actual, expected)[0]
    assert error <= tolerance, f'{name}: {error:.1e}'


def compare(plain, reversible, image, tolerance=2e-6):
    """Check that the gradients of two models are the same."""
    weights = output_weights(plain, image)
    assert_same(gradients(reversible, image, weights), gradients(plain, image, weights), tolerance)


@pytest.mark.parametrize('alphas', [0.5, 'spread', 'some at 1e-3', 1e-3])
@pytest.mark.parametrize('num_columns', [4, 8, 16, 32, 48])
def test_gradients_are_the_same_at_any_depth(alphas, num_columns, device):
    compare(*pair(alphas, num_columns, device=device), torch.randn(IMAGE, device=device))


@pytest.mark.parametrize('autocast', [None, torch.bfloat16, torch.float16])
def test_outputs_are_bitwise_the_same(autocast, device):
    plain, reversible = pair('spread', num_columns=16, device=device)
    image = torch.randn(IMAGE, device=device)
    with torch.autocast(device.type, autocast, enabled=autocast is not None):
        for actual, expected in zip(reversible(image), plain(image), strict=True):
            assert torch.equal(actual, expected)


@pytest.mark.parametrize(
    'alphas', [0.5, 'some at 1e-3', *(pytest.param(a, marks=pytest.mark.slow) for a in ('spread', 1e-3))]
)
def test_gradients_are_as_accurate_as_those_of_plain_training(alphas, device):
    """Compared with float64, averaged over images: on a single image either may be twice as accurate."""
    _, model = pair(alphas, num_columns=48, device=device)
    reversible_errors, plain_errors = [], []
    for seed in range(5):
        torch.manual_seed(seed)
        image = torch.randn(1, 3, 32, 64, device=device)
        weights = output_weights(model, image)
        truth = gradients(copy.deepcopy(model).double(), image.double(), [w.double() for w in weights])
        for model.save_memory, errors in ((True, reversible_errors), (False, plain_errors)):
            errors.append(worst_errors(gradients(model, image, weights), truth)[0][0])
    assert sum(reversible_errors) <= 1.5 * sum(plain_errors)


@pytest.mark.parametrize('alphas', [0.5, 'spread', 1e-3])
@pytest.mark.parametrize('level_connection', ['standard', 'huge'])
def test_backward_calls_every_level_again_with_bitwise_the_same_inputs(alphas, level_connection, device):
    """And with a graph in both passes: without one, a level might use other kernels."""
    arch = dict(WIDTHS, num_columns=48, level_connection=level_connection)
    _, model = pair(alphas, arch=arch, device=device)
    calls = defaultdict(list)

    def record(level, inputs, output):
        calls[level].append([tensor.detach().clone() for tensor in inputs])
        assert output.requires_grad

    for name, module in model.named_modules():
        if name.rpartition('.')[2].startswith('level'):
            module.register_forward_hook(record)
    sum(f.mean() for f in model(torch.randn(1, 3, 64, 64, device=device))).backward()
    assert len(calls) == 48 * 4
    for forward, backward in calls.values():
        assert all(map(torch.equal, forward, backward))


def autocast_gradients(model, image, weights, dtype):
    leaf = image.clone().requires_grad_()
    with torch.autocast(image.device.type, dtype):
        outputs = model(leaf)
    model.zero_grad()
    sum((o.float() * w).mean() for o, w in zip(outputs, weights)).backward()  # outside of autocast, as usual
    return {'input': leaf.grad, **{name: param.grad for name, param in model.named_parameters()}}


@pytest.mark.parametrize('alphas', [0.5, 'spread', 1e-3])
@pytest.mark.parametrize('dtype, tolerance', [(torch.bfloat16, 2e-2), (torch.float16, 4e-3)])
def test_gradients_under_autocast_are_the_same(alphas, dtype, tolerance, device):
    """Those of the stem only approximately: they are summed over all columns in low precision."""
    models = pair(alphas, num_columns=16, device=device)
    image = torch.randn(IMAGE, device=device)
    weights = output_weights(models[0], image)
    truth = gradients(models[0], image, weights)
    expected, actual = (autocast_gradients(model, image, weights, dtype) for model in models)
    assert worst_errors(actual, truth)[0][0] <= 1.5 * worst_errors(expected, truth)[0][0]
    assert_same(actual, expected, tolerance)
    of_columns = {name: grad for name, grad in expected.items() if name.startswith('subnet')}
    assert_same(actual, of_columns, 2e-5)


def test_training_with_a_gradient_scaler_is_as_accurate_as_plain_training(device):
    """The second of three steps has infinite gradients and is skipped."""
    plain, reversible = pair(num_columns=8, device=device)
    image = torch.randn(IMAGE, device=device)
    weights = []
    for model, dtype in (
        (copy.deepcopy(plain), torch.float32),
        (plain, torch.float16),
        (reversible, torch.float16),
    ):
        scaler = torch.amp.GradScaler(device.type, init_scale=2.0**10)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for factor in (1.0, torch.inf, 1.0):
            optimizer.zero_grad()
            with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                loss = sum(f.square().mean() for f in model(image))
            scaler.scale(loss * factor).backward()
            scaler.step(optimizer)
            scaler.update()
        assert scaler.get_scale() == 2.0**9
        weights.append(dict(model.named_parameters()))
    truth, of_plain, of_reversible = weights
    assert worst_errors(of_reversible, truth)[0][0] <= 1.5 * worst_errors(of_plain, truth)[0][0]


def test_drop_path_masks_and_the_generators_afterwards_are_the_same(device):
    plain, reversible = pair(num_columns=8, drop_path_rate=0.5, device=device)
    image = torch.randn(8, 3, 32, 32, device=device)
    compare(plain, reversible, image)
    drawn = []
    for model in (plain, reversible):
        torch.manual_seed(3)
        sum(f.mean() for f in model(image)).backward()
        drawn.append([torch.rand(8), torch.rand(8, device=device)])
    assert all(map(torch.equal, *drawn))


def test_forward_hooks_on_columns_and_blocks_fire_once_in_forward():
    _, model = pair()
    fired = []
    for module in (model.subnet1, model.subnet1.level0.blocks[0]):
        module.register_forward_hook(lambda m, i, o: fired.append(type(m).__name__))
    model(torch.randn(IMAGE))
    assert fired == ['ConvNeXtBlock', 'Column']


def test_columns_do_not_use_kernels_chosen_by_cudnn_benchmark(monkeypatch):
    """Backward runs in another thread, in which the benchmark may choose other kernels."""
    monkeypatch.setattr(torch.backends.cudnn, 'benchmark', True)
    _, model = pair()
    flags = []
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(lambda m, i, o: flags.append(torch.backends.cudnn.benchmark))
    sum(f.mean() for f in model(torch.randn(IMAGE))).backward()
    assert flags[0]  # the stem is not called again
    assert not any(flags[1:])
    assert torch.backends.cudnn.benchmark


@pytest.mark.parametrize(
    'change',
    [
        lambda feature: feature * 2,
        lambda feature: feature.clone(),
        lambda feature: feature.detach().mul_(2),
        lambda feature: feature.transpose(2, 3),
        lambda feature: feature[:1],
    ],
    ids=['scaled', 'copied', 'scaled in place', 'transposed', 'part'],
)
def test_a_hook_that_changes_the_result_of_a_column_is_an_error(change):
    _, model = pair()
    model.subnet1.register_forward_hook(lambda m, i, outputs: [*outputs[:3], change(outputs[3])])
    with pytest.raises(RuntimeError, match='modified or replaced, for example by a forward hook'):
        model(torch.randn(2, 3, 64, 64))


def test_views_of_the_result_of_a_column_are_accepted(device):
    """FSDP makes such views. With a batch of one image the batch stride is arbitrary."""
    plain, model = pair(device=device)
    for column in model.columns:
        column.register_forward_hook(
            lambda m, i, outputs: [f.as_strided(f.shape, (1, *f.stride()[1:])) for f in outputs]
        )
    compare(plain, model, torch.randn(1, 3, 64, 64, device=device))


def backward_twice(model, image):
    for _ in range(2):
        sum(f.square().mean() for f in model(image)).backward()


def backward_of_two_forward_passes(model, image):
    sum(f.square().mean() for scale in (1, 2) for f in model(scale * image)).backward()


def backward_with_retained_graph(model, image):
    outputs = model(image)
    outputs[3].square().mean().backward(retain_graph=True)
    outputs[0].square().mean().backward()


def backward_after_modifying_outputs_in_place(model, image):
    sum(f.mul_(2).square().mean() for f in model(image)).backward()


def backward_with_frozen_parameters(model, image):
    for part in (model.stem, model.subnet2.level1.blocks[0].pwconv1):
        part.requires_grad_(False)
    model.subnet1.alpha2.requires_grad_(False)
    sum(f.square().mean() for f in model(image)).backward()


def backward_in_evaluation_mode(model, image):
    loss = sum(f.square().mean() for f in model(image))
    model.eval()
    loss.backward()
    assert not any(module.training for module in model.modules())


def backward_of_one_output(model, image):
    model(image)[1].square().mean().backward()


@pytest.mark.parametrize(
    'step',
    [
        backward_twice,
        backward_of_two_forward_passes,
        backward_with_retained_graph,
        backward_after_modifying_outputs_in_place,
        backward_with_frozen_parameters,
        backward_in_evaluation_mode,
        backward_of_one_output,
    ],
)
def test_unusual_steps_give_the_same_gradients(step, device):
    """Parameters that do not influence the loss get zeros, or no gradient."""
    models, image = pair(drop_path_rate=0.5, device=device), torch.randn(IMAGE, device=device)
    for model in models:
        torch.manual_seed(0)
        step(model, image)
    plain, reversible = (
        {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in model.named_parameters()}
        for model in models
    )
    assert_same(reversible, plain, 2e-5)


@pytest.mark.parametrize(
    'options',
    [*(dict(out_indices=i) for i in [(3,), (0, 2), (-1, 0)]), *(dict(frozen_columns=n) for n in (1, 3, 4))],
)
def test_gradients_are_the_same_with_options(options, device):
    compare(*pair(**options, device=device), torch.randn(IMAGE, device=device))


@pytest.mark.parametrize('mode', [nullcontext, torch.no_grad, torch.inference_mode])
def test_evaluation_is_plain(mode, device):
    plain, reversible = pair('spread', device=device)
    plain.save_memory = False
    image = torch.randn(IMAGE, device=device)
    with mode():
        for actual, expected in zip(reversible.eval()(image), plain.eval()(image)):
            assert torch.equal(actual, expected)


@pytest.mark.parametrize('autocast', [None, torch.bfloat16])
def test_plain_training_and_evaluation_give_the_same_bits(autocast, device):
    model, image = pair('spread', device=device)[1], torch.randn(IMAGE, device=device)
    model.save_memory = False
    with torch.autocast(device.type, autocast, enabled=autocast is not None):
        trained = model(image)
        with torch.no_grad():
            assert all(map(torch.equal, trained, model.eval()(image)))


def test_parameters_of_functional_call_get_the_gradients(device):
    models, image = pair(device=device), torch.randn(IMAGE, device=device)
    grads = []
    for model in models:
        params = {name: (2 * p.detach()).requires_grad_() for name, p in model.named_parameters()}
        loss = sum(f.square().mean() for f in torch.func.functional_call(model, params, image))
        grads.append(dict(zip(params, torch.autograd.grad(loss, list(params.values())))))
    plain, reversible = grads
    assert_same(reversible, plain, 2e-5)


def test_a_copied_or_pickled_model_trains(device):
    plain, reversible = pair(device=device)
    reversible(torch.randn(IMAGE, device=device))
    for again in (copy.deepcopy(reversible), pickle.loads(pickle.dumps(reversible))):
        compare(plain, again, torch.randn(IMAGE, device=device))
