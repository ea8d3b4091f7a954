"""Reversible training gives the plain model's gradients and stores next to nothing."""

import copy
import gc
import pickle
import weakref
from functools import partial

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils.checkpoint import checkpoint

import revcol_mm.ops.reversible as reversible_module
from revcol_mm import RevCol
from revcol_mm.ops import ReversibleChain, call
from revcol_mm.testing import StoringChain, gradients, peak_bytes, worst_errors

from .test_revcol import assert_near, golden_model

WIDTHS = dict(channels=(8, 16, 24, 32), layers=(1, 1, 2, 1))
IMAGE = (2, 3, 64, 96)


def set_alphas(model, alphas):
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
    """The same model, storing what it computes and reversible."""
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


def compare(plain, reversible, image, tolerance=2e-6):
    weights = output_weights(plain, image)
    (error, name), *_ = worst_errors(gradients(reversible, image, weights), gradients(plain, image, weights))
    assert error <= tolerance, f'{name}: {error:.1e}'


@pytest.mark.parametrize('alphas', [0.5, 'spread', 'some at 1e-3', 1e-3])
@pytest.mark.parametrize('num_columns', [4, 8, 16, 32, 48])
def test_gradients_are_the_plain_model_s_at_any_depth(alphas, num_columns, device):
    compare(*pair(alphas, num_columns, device=device), torch.randn(IMAGE, device=device))


@pytest.mark.parametrize('autocast', [None, torch.bfloat16, torch.float16])
def test_outputs_are_the_plain_model_s_to_the_last_bit(autocast, device):
    plain, reversible = pair('spread', num_columns=16, device=device)
    image = torch.randn(IMAGE, device=device)
    with torch.autocast(device.type, autocast, enabled=autocast is not None):
        for actual, expected in zip(reversible(image), plain(image), strict=True):
            assert torch.equal(actual, expected)


@pytest.mark.parametrize('alphas', [0.5, 'spread', 'some at 1e-3', 1e-3])
def test_gradients_are_as_near_to_the_truth_as_the_plain_model_s(alphas, device):
    """The truth is float64. Of one image either may be twice as near, of several they are alike."""
    _, model = pair(alphas, num_columns=48, device=device)
    errors, errors_of_plain = [], []
    for seed in range(5):
        torch.manual_seed(seed)
        image = torch.randn(1, 3, 32, 64, device=device)
        weights = output_weights(model, image)
        truth = gradients(copy.deepcopy(model).double(), image.double(), [w.double() for w in weights])
        for model.save_memory, found in ((True, errors), (False, errors_of_plain)):
            found.append(worst_errors(gradients(model, image, weights), truth)[0][0])
    assert sum(errors) <= 1.5 * sum(errors_of_plain)


@pytest.mark.parametrize('alphas', [0.5, 'spread', 1e-3])
@pytest.mark.parametrize('level_connection', ['standard', 'huge'])
def test_every_column_is_reconstructed_to_the_last_bit(alphas, level_connection, monkeypatch, device):
    arch = dict(WIDTHS, num_columns=48, level_connection=level_connection)
    _, model = pair(alphas, arch=arch, device=device)
    states, put = [], reversible_module._Value.put
    monkeypatch.setattr(
        reversible_module._Value,
        'put',
        lambda self, *state: (
            states.append([part.clone() for part in state if part is not None]) or put(self, *state)
        ),
    )
    loss = sum(f.mean() for f in model(torch.randn(1, 3, 64, 64, device=device)))
    forward, states[:] = [state for state in states if len(state) == 2], []
    loss.backward()
    assert len(forward) == 48 * 4 and len(states) == 47 * 4
    for actual, expected in zip(states, reversed(forward[: 47 * 4])):
        assert all(map(torch.equal, actual, expected))


def test_fixtures_hold_reversibly_too(golden):
    model = golden_model(golden)
    model.save_memory = True
    image = golden['input'].clone().requires_grad_()
    outputs = model(image)
    sum((c * w).sum() for c, w in zip(outputs, golden['output_weights'], strict=True)).backward()
    for actual, expected in zip(outputs, golden['outputs'], strict=True):
        assert_near(actual, expected)
    assert_near(image.grad, golden['input_grad'])
    for name, param in model.named_parameters():
        assert_near(param.grad, golden['param_grads'][name])


def autocast_gradients(model, image, weights, dtype):
    leaf = image.clone().requires_grad_()
    with torch.autocast(image.device.type, dtype):
        outputs = model(leaf)
    model.zero_grad()
    sum((o.float() * w).mean() for o, w in zip(outputs, weights)).backward()  # outside of autocast
    return {'input': leaf.grad, **{name: param.grad for name, param in model.named_parameters()}}


@pytest.mark.parametrize('alphas', [0.5, 'spread', 1e-3])
@pytest.mark.parametrize('dtype, tolerance', [(torch.bfloat16, 2e-2), (torch.float16, 4e-3)])
def test_gradients_under_autocast_are_the_plain_model_s(alphas, dtype, tolerance, device):
    """But for the sum over columns of the stem's gradients, which is in the lower precision."""
    models = pair(alphas, num_columns=16, device=device)
    image = torch.randn(IMAGE, device=device)
    weights = output_weights(models[0], image)
    truth = gradients(models[0], image, weights)
    expected, actual = (autocast_gradients(model, image, weights, dtype) for model in models)
    assert worst_errors(actual, truth)[0][0] <= 1.5 * worst_errors(expected, truth)[0][0]
    (error, name), *_ = worst_errors(actual, expected)
    assert error <= tolerance, name
    for grads in (expected, actual):
        for name in [name for name in grads if name == 'input' or name.startswith('stem')]:
            del grads[name]
    (error, name), *_ = worst_errors(actual, expected)
    assert error <= 2e-5, name


def test_steps_with_a_gradient_scaler_are_as_near_to_float32_s_as_the_plain_model_s(device):
    """The second of three is skipped, for its gradients are infinite."""
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


def test_drop_path_draws_the_same_masks_and_leaves_the_generator_as_the_plain_model_does(device):
    plain, reversible = pair(num_columns=8, drop_path_rate=0.5, device=device)
    image = torch.randn(8, 3, 32, 32, device=device)
    compare(plain, reversible, image)
    drawn = []
    for model in (plain, reversible):
        torch.manual_seed(3)
        sum(f.mean() for f in model(image)).backward()
        drawn.append([torch.rand(8), torch.rand(8, device=device)])
    for of_plain, of_reversible in zip(*drawn):
        assert torch.equal(of_plain, of_reversible)


def test_every_level_runs_twice_in_a_step_both_times_with_a_graph():
    """Without one it might take other kernels."""
    _, model = pair(num_columns=3)
    runs = []
    for name, module in model.named_modules():
        if name.split('.')[-1].startswith('level'):
            module.register_forward_hook(lambda m, i, o, name=name: runs.append((name, o.requires_grad)))
    outputs = model(torch.randn(IMAGE))
    assert len(runs) == 12
    sum(f.mean() for f in outputs).backward()
    assert len(runs) == 24 and all(with_graph for _, with_graph in runs)
    assert {name for name, _ in runs[:12]} == {name for name, _ in runs[12:]}


def test_columns_run_with_kernels_that_cudnn_has_not_tried_out(monkeypatch):
    """Backward's thread tries for itself, and may take others than forward's."""
    monkeypatch.setattr(torch.backends.cudnn, 'benchmark', True)
    _, model = pair()
    tried = []
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(lambda m, i, o: tried.append(torch.backends.cudnn.benchmark))
    sum(f.mean() for f in model(torch.randn(IMAGE))).backward()
    assert tried[0] and not any(tried[1:])  # the stem runs once
    assert torch.backends.cudnn.benchmark


def test_hooks_on_columns_and_blocks_fire_in_forward():
    _, model = pair()
    fired = []
    for module in (model.subnet1, model.subnet1.level0.blocks[0]):
        module.register_forward_hook(lambda m, i, o: fired.append(type(m).__name__))
    model(torch.randn(IMAGE))
    assert fired == ['ConvNeXtBlock', 'Column']


CHANGES = {
    'scaled': lambda feature: feature * 2,
    'copied': lambda feature: feature.clone(),
    'scaled in place': lambda feature: feature.detach().mul_(2),
}


def test_columns_of_the_plain_model_can_be_checkpointed(device):
    model, _ = pair('spread', device=device)
    model.save_memory = False
    image = torch.randn(IMAGE, device=device)
    weights = output_weights(model, image)
    expected = gradients(model, image, weights)
    for column in model.columns:
        column.forward = partial(checkpoint, column.forward, use_reentrant=False)
    (error, name), *_ = worst_errors(gradients(model, image, weights), expected)
    assert error <= 2e-5, name


@pytest.mark.parametrize('change', CHANGES.values(), ids=CHANGES)
def test_a_hook_that_changes_a_column_s_result_is_an_error(change):
    _, model = pair()
    model.subnet1.register_forward_hook(lambda m, i, outputs: [*outputs[:3], change(outputs[3])])
    with pytest.raises(RuntimeError, match='as it is; something, such as a forward hook'):
        model(torch.randn(IMAGE))


def test_views_of_a_column_s_result_are_its_result(device):
    """FSDP makes some. One image may be any number of elements from the next that is not there."""
    plain, model = pair(device=device)
    for column in model.columns:
        column.register_forward_hook(
            lambda m, i, outputs: [f.as_strided(f.shape, (1, *f.stride()[1:])) for f in outputs]
        )
    compare(plain, model, torch.randn(1, 3, 64, 64, device=device))


def test_gradients_accumulate_over_steps_and_over_forward_passes(device):
    plain, reversible = pair(device=device)
    images = torch.randn(2, *IMAGE, device=device)
    for model in (plain, reversible):
        losses = [sum(f.square().mean() for f in model(image)) for image in images]
        sum(losses).backward()
        sum(f.square().mean() for f in model(images[0])).backward()
    errors = worst_errors(
        *({n: p.grad for n, p in model.named_parameters()} for model in (reversible, plain))
    )
    assert errors[0][0] <= 2e-5


def test_a_graph_that_is_retained_can_be_walked_again(device):
    plain, reversible = pair(device=device)
    image = torch.randn(IMAGE, device=device)
    for model in (plain, reversible):
        outputs = model(image)
        outputs[3].square().mean().backward(retain_graph=True)
        outputs[0].square().mean().backward()
    errors = worst_errors(
        *({n: p.grad for n, p in model.named_parameters()} for model in (reversible, plain))
    )
    assert errors[0][0] <= 2e-5


@pytest.mark.parametrize('out_indices', [(3,), (0, 2), (-1, 0)])
def test_a_subset_of_the_levels(out_indices, device):
    compare(*pair(out_indices=out_indices, device=device), torch.randn(IMAGE, device=device))


def test_outputs_that_get_no_gradient():
    plain, reversible = pair()
    for model in (plain, reversible):
        model(torch.randn(IMAGE, generator=torch.Generator().manual_seed(4)))[1].square().mean().backward()
    for (name, param), reference in zip(reversible.named_parameters(), plain.parameters()):
        expected = torch.zeros_like(param) if reference.grad is None else reference.grad
        actual = torch.zeros_like(param) if param.grad is None else param.grad
        assert worst_errors({name: actual}, {name: expected})[0][0] <= 2e-5, name


@pytest.mark.parametrize('frozen_columns', [1, 3, 4])
def test_frozen_columns(frozen_columns, device):
    compare(*pair(frozen_columns=frozen_columns, device=device), torch.randn(IMAGE, device=device))


def test_frozen_single_parameters_and_an_image_without_gradient(device):
    plain, reversible = pair(device=device)
    image = torch.randn(IMAGE, device=device)
    for model in (plain, reversible):
        model.stem.requires_grad_(False)
        model.subnet1.alpha2.requires_grad_(False)
        model.subnet2.level1.blocks[0].pwconv1.requires_grad_(False)
        sum(f.square().mean() for f in model(image)).backward()
    errors = worst_errors(
        *({n: p.grad for n, p in model.named_parameters()} for model in (reversible, plain))
    )
    assert errors[0][0] <= 2e-5


def test_every_trainable_parameter_gets_a_gradient(device):
    _, model = pair(device=device)
    sum(f.mean() for f in model(torch.randn(IMAGE, device=device))).backward()
    assert all(param.grad is not None for param in model.parameters())


@pytest.mark.parametrize('mode', [torch.no_grad, torch.inference_mode])
def test_without_gradients_it_is_the_plain_model(mode, device):
    plain, reversible = pair(device=device)
    image = torch.randn(IMAGE, device=device)
    with mode():
        for actual, expected in zip(reversible.eval()(image), plain.eval()(image)):
            assert torch.equal(actual, expected)


def test_evaluation_mode_with_gradients_is_the_plain_model(device):
    plain, reversible = pair('spread', device=device)
    compare(plain.eval(), reversible.eval(), torch.randn(IMAGE, device=device), tolerance=0)


def test_a_copied_or_pickled_model_trains(device):
    plain, reversible = pair(device=device)
    reversible(torch.randn(IMAGE, device=device))
    for again in (copy.deepcopy(reversible), pickle.loads(pickle.dumps(reversible))):
        compare(plain, again, torch.randn(IMAGE, device=device))


def test_differentiating_twice_is_an_error():
    _, model = pair()
    image = torch.randn(IMAGE, requires_grad=True)
    with pytest.raises(RuntimeError, match='differentiated twice'):
        torch.autograd.grad(model(image)[0].mean(), image, create_graph=True)


def test_features_that_are_changed_in_place_before_backward_are_an_error(device):
    _, model = pair(device=device)
    *_, features = model.forward_columns(torch.randn(IMAGE, device=device))
    loss = features[0].mean()
    features[0].detach().zero_()
    with pytest.raises(RuntimeError, match='in place'):
        loss.backward()


def test_the_model_s_outputs_may_be_changed_in_place(device):
    """They are copies, in the image's layout, of what the chain needs."""
    plain, model = pair(device=device)
    image, grads = torch.randn(IMAGE, device=device), []
    for each in (model, plain):
        torch.manual_seed(0)
        sum(feature.mul_(2).square().mean() for feature in each(image)).backward()
        grads.append({name: param.grad for name, param in each.named_parameters()})
    assert worst_errors(*grads)[0][0] < 2e-5


def test_a_weight_that_is_changed_in_place_before_backward_is_an_error(device):
    _, model = pair(device=device)
    loss = sum(f.mean() for f in model(torch.randn(IMAGE, device=device)))
    with torch.no_grad():
        model.subnet2.level0.blocks[0].pwconv1.weight.mul_(2)
    with pytest.raises(RuntimeError, match=r'parameter blocks\.0\.pwconv1\.weight .* changed in place since'):
        loss.backward()


TINY = dict(channels=(8, 16, 32, 64), layers=(2, 2, 4, 2))  # as RevCol-T, an eighth as wide


def activation_bytes(arch, save_memory, image):
    model = RevCol(arch=arch, save_memory=save_memory).to(image.device)

    def step():
        sum(f.mean() for f in model(image)).backward()

    step()  # makes gradients, and on a GPU the libraries' work space
    return peak_bytes(step, image.device)


def test_memory_hardly_grows_with_columns(device):
    image = torch.rand(1, 3, 256, 256, device=device)
    few, many = (activation_bytes(dict(TINY, num_columns=n), save_memory=True, image=image) for n in (4, 32))
    assert many <= 1.1 * few
    assert many <= 0.1 * activation_bytes(dict(TINY, num_columns=32), save_memory=False, image=image)


@pytest.mark.parametrize('training', [True, False])
def test_autocast_does_not_keep_its_casts_of_the_weights(training, device):
    model = RevCol(arch='tiny', save_memory=True).to(device).train(training)
    image = torch.rand(1, 3, 32, 32, device=device)

    def forward():
        with torch.set_grad_enabled(training), torch.autocast(device.type, torch.bfloat16):
            model(image)

    num_weights = sum(param.numel() for param in model.parameters() if param.ndim > 1)
    forward()
    assert peak_bytes(forward, device) <= 0.2 * 2 * num_weights


@pytest.mark.parametrize('alphas, share', [(0.5, 1 / 8), ('spread', 1 / 2), (1e-3, 2 / 3)])
def test_what_is_kept_is_less_than_every_column_however_small_alphas_are(alphas, share):
    """Beside the last column's result: 2 bits for each 32 at 0.5, and 16 at 1e-3."""
    kept = []

    class MeasuredChain(ReversibleChain):
        def __call__(self, *args):
            features = super().__call__(*args)
            kept.append(self.kept_bytes)
            return features

    _, model = pair(alphas, num_columns=32)
    model.chain_type = MeasuredChain
    *_, features = model.forward_columns(torch.randn(IMAGE))
    assert 0 < kept[-1] <= share * 32 * sum(feature.nbytes for feature in features)


def test_fifty_steps_leave_no_tensor_behind(device):
    _, model = pair(device=device)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    num_alive = {}
    for step in range(50):
        optimizer.zero_grad()
        sum(f.mean() for f in model(torch.randn(1, 3, 32, 32, device=device))).backward()
        optimizer.step()
        if step in (1, 49):
            num_alive[step] = sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())
    assert num_alive[49] <= num_alive[1]


def test_nothing_is_left_after_backward():
    chains = []

    def remember(*args):
        chain = ReversibleChain(*args)
        chains.append(weakref.ref(chain))
        return chain

    _, model = pair()
    model.chain_type = remember
    for _ in range(3):
        sum(f.mean() for f in model(torch.randn(IMAGE))).backward()
    assert len(chains) == 3 and all(chain() is None for chain in chains)


def test_compiled_plain_training_is_one_graph_and_gives_the_same_gradients(device):
    arch = dict(channels=(8, 16), layers=(1, 1), num_columns=3)
    model, _ = pair('spread', arch=arch, out_indices=(0, 1), device=device)
    model.save_memory = False
    image = torch.randn(1, 3, 32, 32, device=device)
    weights = output_weights(model, image)
    expected = gradients(model, image, weights)
    model.compile(backend='aot_eager', fullgraph=True)
    (error, name), *_ = worst_errors(gradients(model, image, weights), expected)
    assert error <= 2e-6, name


def test_compiled_reversible_training_compiles_what_levels_compute_and_gives_the_same_gradients(
    monkeypatch, device
):
    arch = dict(channels=(8, 16), layers=(1, 1), num_columns=3)
    plain, model = pair('spread', arch=arch, out_indices=(0, 1), device=device)
    image = torch.randn(1, 3, 32, 32, device=device)
    weights = output_weights(plain, image)
    expected = gradients(plain, image, weights)
    counter = CompileCounterWithBackend('aot_eager')
    compiled = torch.compile(call._apply, backend=counter)
    monkeypatch.setattr(call, '_compiled', lambda: compiled)
    model.compile(backend='aot_eager')
    for _ in range(2):
        (error, name), *_ = worst_errors(gradients(model, image, weights), expected)
        assert error <= 2e-6, name
    # Those of the first column's two levels, and of the others' lower one, which reads the one above; in both
    # passes the same.
    assert counter.frame_count == 3
    for graph in counter.graphs:
        assert 'conv2d' in graph.code and 'layer_norm' in graph.code and 'gelu' in graph.code
