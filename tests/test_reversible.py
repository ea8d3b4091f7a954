"""Reversible training gives the plain model's gradients and stores next to nothing."""

import copy
import doctest
import gc
import pickle
import weakref

import pytest
import torch
from torch import nn

import revcol_mm.models.backbones.revcol as revcol_module
from revcol_mm import RevCol
from revcol_mm.ops import Coupling, ReversibleChain, couple, uncouple
from revcol_mm.testing import gradients, parity, peak_bytes, worst_errors

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


def pair(alphas=0.5, num_columns=4, **kwargs):
    """The same model, plain and reversible."""
    kwargs = {'arch': dict(WIDTHS, num_columns=num_columns), 'layer_scale_init_value': 0.3, **kwargs}
    plain = RevCol(**kwargs)
    set_alphas(plain, alphas)
    reversible = RevCol(**kwargs, save_memory=True)
    reversible.load_state_dict(plain.state_dict())
    return plain, reversible


def output_weights(model, image):
    with torch.no_grad():
        outputs = copy.deepcopy(model).eval()(image)
    generator = torch.Generator().manual_seed(2)
    return [torch.randn(output.shape, generator=generator).to(output) for output in outputs]


def compare(plain, reversible, image, tolerance=2e-5):
    weights = output_weights(plain, image)
    (error, name), *_ = worst_errors(gradients(reversible, image, weights), gradients(plain, image, weights))
    assert error <= tolerance, f'{name}: {error:.1e}'


@pytest.mark.parametrize('alphas', [0.5, 'spread', 'some at 1e-3', 1e-3])
@pytest.mark.parametrize('num_columns', [4, 8, 16])
def test_gradients_are_the_plain_model_s(alphas, num_columns):
    compare(*pair(alphas, num_columns), torch.randn(IMAGE))


@pytest.mark.parametrize('alphas', [0.5, 'spread', 'some at 1e-3', 1e-3])
@pytest.mark.parametrize('num_columns', [32, 48])
def test_gradients_of_deep_models_are_as_near_to_the_truth_as_the_plain_model_s(alphas, num_columns):
    """The truth is a run in float64. At this depth float32 itself is up to 3e-5 away from it."""
    plain, reversible = pair(alphas, num_columns)
    image = torch.randn(1, 3, 32, 64)
    weights = output_weights(plain, image)
    truth = gradients(copy.deepcopy(plain).double(), image.double(), [w.double() for w in weights])
    error_of_plain, _ = worst_errors(gradients(plain, image, weights), truth)[0]
    error_of_reversible, name = worst_errors(gradients(reversible, image, weights), truth)[0]
    assert error_of_reversible <= max(2 * error_of_plain, 2e-5), name


@pytest.mark.parametrize('alphas', [0.5, 'spread', 1e-3])
@pytest.mark.parametrize('level_connection', ['standard', 'huge'])
def test_every_column_is_reconstructed_to_the_last_bit(alphas, level_connection, monkeypatch):
    arch = dict(WIDTHS, num_columns=48, level_connection=level_connection)
    _, model = pair(alphas, arch=arch)
    forward, reconstructed = [], {}
    couple_, undo = ReversibleChain.couple, ReversibleChain._undo

    def record(self, *args):
        forward.append(couple_(self, *args))
        return forward[-1].clone()

    def compare_to_record(self, index, *args):
        feature = undo(self, index, *args)
        if index >= 4:
            reconstructed[index - 4] = torch.equal(feature, forward[index - 4])
        return feature

    monkeypatch.setattr(ReversibleChain, 'couple', record)
    monkeypatch.setattr(ReversibleChain, '_undo', compare_to_record)
    sum(f.mean() for f in model(torch.randn(1, 3, 64, 64))).backward()
    assert len(reconstructed) == 47 * 4 and all(reconstructed.values())


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


class Scaled(nn.Module):
    """An F that has nothing to do with images."""

    def __init__(self, size):
        super().__init__()
        self.linear = nn.Linear(size, size)

    def forward(self, *inputs):
        return torch.tanh(self.linear(sum(inputs)))


def toy_chain(num_links, size=3, dtype=torch.float64):
    """Three levels; level l reads x or the level below, and the level above of the link before."""
    modules = nn.ModuleList([Scaled(size) for _ in range(3 * num_links)]).to(dtype)
    reads = [(None, 1), (0, 2), (1,)]

    def links(alphas):
        return [
            [Coupling(level, reads[level], modules[3 * i + level], alphas[i, level]) for level in range(3)]
            for i in range(num_links)
        ]

    return modules, links


def test_gradcheck_in_float64():
    modules, links = toy_chain(num_links=3)
    params = list(modules.parameters())

    def run(alphas, x, *rest):
        features = list(rest[:3])
        chain = ReversibleChain(num_links=3)
        for link in links(alphas):
            features = chain(link, x, features)
        return tuple(features)

    alphas = torch.rand(3, 3, 3, dtype=torch.float64).add_(0.3).requires_grad_()
    inputs = [torch.randn(2, 3, dtype=torch.float64, requires_grad=True) for _ in range(4)]
    assert torch.autograd.gradcheck(run, (alphas, *inputs, *params))


def test_one_call_checks_a_design_of_one_s_own():
    assert doctest.testmod(parity).failed == 0
    _, links = toy_chain(num_links=4)
    alphas = (torch.rand(4, 3, 3, dtype=torch.float64) + 0.3).requires_grad_()
    x, *features = (torch.randn(2, 3, dtype=torch.float64) for _ in range(4))
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


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_gradients_under_autocast_are_as_near_to_float32_s_as_the_plain_model_s(dtype):
    plain, reversible = pair(num_columns=8)
    image = torch.randn(IMAGE)
    weights = output_weights(plain, image)
    truth = gradients(plain, image, weights)
    errors = []
    for model in (plain, reversible):
        leaf = image.clone().requires_grad_()
        with torch.autocast('cpu', dtype):
            outputs = model(leaf)
        model.zero_grad()
        sum((o.float() * w).mean() for o, w in zip(outputs, weights)).backward()  # outside of autocast
        under_autocast = {'input': leaf.grad, **{n: p.grad for n, p in model.named_parameters()}}
        errors.append(worst_errors(under_autocast, truth)[0][0])
    assert errors[1] <= 1.5 * errors[0]


def test_steps_with_a_gradient_scaler_are_as_near_to_float32_s_as_the_plain_model_s():
    """The second of three is skipped, for its gradients are infinite."""
    plain, reversible = pair(num_columns=8)
    image = torch.randn(IMAGE)
    weights = []
    for model, dtype in (
        (copy.deepcopy(plain), torch.float32),
        (plain, torch.float16),
        (reversible, torch.float16),
    ):
        scaler = torch.amp.GradScaler('cpu', init_scale=2.0**10)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for factor in (1.0, torch.inf, 1.0):
            optimizer.zero_grad()
            with torch.autocast('cpu', dtype, enabled=dtype != torch.float32):
                loss = sum(f.square().mean() for f in model(image))
            scaler.scale(loss * factor).backward()
            scaler.step(optimizer)
            scaler.update()
        assert scaler.get_scale() == 2.0**9
        weights.append(dict(model.named_parameters()))
    truth, of_plain, of_reversible = weights
    assert worst_errors(of_reversible, truth)[0][0] <= 1.5 * worst_errors(of_plain, truth)[0][0]


def test_drop_path_draws_the_same_masks_and_leaves_the_generator_as_the_plain_model_does():
    plain, reversible = pair(num_columns=8, drop_path_rate=0.5)
    image = torch.randn(8, 3, 32, 32)
    compare(plain, reversible, image)
    states = []
    for model in (plain, reversible):
        torch.manual_seed(3)
        sum(f.mean() for f in model(image)).backward()
        states.append(torch.get_rng_state())
    assert torch.equal(*states)


def test_every_level_runs_twice_in_a_step_the_second_time_with_a_graph():
    _, model = pair(num_columns=3)
    runs = []
    for name, module in model.named_modules():
        if name.split('.')[-1].startswith('level'):
            module.register_forward_hook(lambda m, i, o, name=name: runs.append((name, o.requires_grad)))
    outputs = model(torch.randn(IMAGE))
    assert len(runs) == 12 and not any(with_graph for _, with_graph in runs)
    sum(f.mean() for f in outputs).backward()
    assert len(runs) == 24 and all(with_graph for _, with_graph in runs[12:])
    assert {name for name, _ in runs[:12]} == {name for name, _ in runs[12:]}


def test_hooks_on_columns_and_blocks_fire_in_forward():
    _, model = pair()
    fired = []
    for module in (model.subnet1, model.subnet1.level0.blocks[0]):
        module.register_forward_hook(lambda m, i, o: fired.append(type(m).__name__))
    model(torch.randn(IMAGE))
    assert fired == ['ConvNeXtBlock', 'Column']


def test_gradients_accumulate_over_steps_and_over_forward_passes():
    plain, reversible = pair()
    images = torch.randn(2, *IMAGE)
    for model in (plain, reversible):
        losses = [sum(f.square().mean() for f in model(image)) for image in images]
        sum(losses).backward()
        sum(f.square().mean() for f in model(images[0])).backward()
    errors = worst_errors(
        *({n: p.grad for n, p in model.named_parameters()} for model in (reversible, plain))
    )
    assert errors[0][0] <= 2e-5


def test_a_graph_that_is_retained_can_be_walked_again():
    plain, reversible = pair()
    image = torch.randn(IMAGE)
    for model in (plain, reversible):
        outputs = model(image)
        outputs[3].square().mean().backward(retain_graph=True)
        outputs[0].square().mean().backward()
    errors = worst_errors(
        *({n: p.grad for n, p in model.named_parameters()} for model in (reversible, plain))
    )
    assert errors[0][0] <= 2e-5


@pytest.mark.parametrize('out_indices', [(3,), (0, 2), (-1, 0)])
def test_a_subset_of_the_levels(out_indices):
    compare(*pair(out_indices=out_indices), torch.randn(IMAGE))


def test_outputs_that_get_no_gradient():
    plain, reversible = pair()
    for model in (plain, reversible):
        model(torch.randn(IMAGE, generator=torch.Generator().manual_seed(4)))[1].square().mean().backward()
    for (name, param), reference in zip(reversible.named_parameters(), plain.parameters()):
        expected = torch.zeros_like(param) if reference.grad is None else reference.grad
        actual = torch.zeros_like(param) if param.grad is None else param.grad
        assert worst_errors({name: actual}, {name: expected})[0][0] <= 2e-5, name


@pytest.mark.parametrize('frozen_columns', [1, 3, 4])
def test_frozen_columns(frozen_columns):
    compare(*pair(frozen_columns=frozen_columns), torch.randn(IMAGE))


def test_frozen_single_parameters_and_an_image_without_gradient():
    plain, reversible = pair()
    image = torch.randn(IMAGE)
    for model in (plain, reversible):
        model.stem.requires_grad_(False)
        model.subnet1.alpha2.requires_grad_(False)
        model.subnet2.level1.blocks[0].pwconv1.requires_grad_(False)
        sum(f.square().mean() for f in model(image)).backward()
    errors = worst_errors(
        *({n: p.grad for n, p in model.named_parameters()} for model in (reversible, plain))
    )
    assert errors[0][0] <= 2e-5


def test_every_trainable_parameter_gets_a_gradient():
    _, model = pair()
    sum(f.mean() for f in model(torch.randn(IMAGE))).backward()
    assert all(param.grad is not None for param in model.parameters())


@pytest.mark.parametrize('mode', [torch.no_grad, torch.inference_mode])
def test_without_gradients_it_is_the_plain_model(mode):
    plain, reversible = pair()
    image = torch.randn(IMAGE)
    with mode():
        for actual, expected in zip(reversible.eval()(image), plain.eval()(image)):
            assert torch.equal(actual, expected)


def test_evaluation_mode_with_gradients_is_the_plain_model():
    plain, reversible = pair('spread')
    compare(plain.eval(), reversible.eval(), torch.randn(IMAGE), tolerance=0)


def test_a_copied_or_pickled_model_trains():
    plain, reversible = pair()
    reversible(torch.randn(IMAGE))
    for again in (copy.deepcopy(reversible), pickle.loads(pickle.dumps(reversible))):
        compare(plain, again, torch.randn(IMAGE))


def test_differentiating_twice_is_an_error():
    _, model = pair()
    image = torch.randn(IMAGE, requires_grad=True)
    with pytest.raises(RuntimeError, match='differentiated twice'):
        torch.autograd.grad(model(image)[0].mean(), image, create_graph=True)


def test_features_that_are_changed_in_place_before_backward_are_an_error():
    _, model = pair()
    features = model(torch.randn(IMAGE))
    loss = features[0].mean()
    features[0].detach().zero_()
    with pytest.raises(RuntimeError, match='in place'):
        loss.backward()


def test_a_weight_that_is_changed_in_place_before_backward_is_an_error():
    _, model = pair()
    loss = sum(f.mean() for f in model(torch.randn(IMAGE)))
    with torch.no_grad():
        model.subnet2.level0.blocks[0].pwconv1.weight.mul_(2)
    with pytest.raises(RuntimeError, match='inplace'):
        loss.backward()


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


TINY = dict(channels=(8, 16, 32, 64), layers=(2, 2, 4, 2))  # as RevCol-T, an eighth as wide


def activation_bytes(arch, save_memory, image):
    model = RevCol(arch=arch, save_memory=save_memory)
    for param in model.parameters():
        param.grad = torch.zeros_like(param)
    return peak_bytes(lambda: sum(f.mean() for f in model(image)).backward())


def test_memory_hardly_grows_with_columns():
    image = torch.rand(1, 3, 256, 256)
    few, many = (activation_bytes(dict(TINY, num_columns=n), save_memory=True, image=image) for n in (4, 32))
    assert many <= 1.1 * few
    assert many <= 0.1 * activation_bytes(dict(TINY, num_columns=32), save_memory=False, image=image)


def test_what_is_kept_is_two_bits_an_element_and_column():
    _, links = toy_chain(num_links=10, size=64, dtype=torch.float32)
    alphas = torch.full((10, 3, 64), 0.5)
    chain = ReversibleChain(num_links=10)
    x, *features = (torch.randn(32, 64, requires_grad=True) for _ in range(4))
    for link in links(alphas):
        features = chain(link, x, features)
    num_elements = sum(feature.numel() for feature in features)
    assert chain.kept_bytes == num_elements * (9 * 2 / 8 + 4)  # the last link's result: its low words


def test_fifty_steps_leave_no_tensor_behind():
    _, model = pair()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    num_alive = {}
    for step in range(50):
        optimizer.zero_grad()
        sum(f.mean() for f in model(torch.randn(1, 3, 32, 32))).backward()
        optimizer.step()
        if step in (1, 49):
            num_alive[step] = sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())
    assert num_alive[49] <= num_alive[1]


def test_nothing_is_left_after_backward(monkeypatch):
    chains = []

    def remember(*args):
        chain = ReversibleChain(*args)
        chains.append(weakref.ref(chain))
        return chain

    monkeypatch.setattr(revcol_module, 'ReversibleChain', remember)
    _, model = pair()
    for _ in range(3):
        sum(f.mean() for f in model(torch.randn(IMAGE))).backward()
    assert len(chains) == 3 and all(chain() is None for chain in chains)


def test_compiled_training_is_reversible_and_gives_the_same_gradients(monkeypatch):
    """Graphs break at the reversible chain."""
    arch = dict(channels=(8, 16), layers=(1, 1), num_columns=2)
    plain, reversible = pair(arch=arch, out_indices=(0, 1))
    coupled = []
    original = ReversibleChain.couple

    def count(self, *args):
        coupled.append(args[0].level)
        return original(self, *args)

    monkeypatch.setattr(ReversibleChain, 'couple', count)
    reversible.compile(backend='aot_eager')
    compare(plain, reversible, torch.randn(1, 3, 32, 32))
    assert coupled == [0, 1, 0, 1]


@pytest.fixture(params=[False, True], ids=['plain', 'save_memory'])
def evaluating(request):
    """A model, an image of a size that no power of two divides, and the features."""
    model = RevCol(arch=dict(WIDTHS, num_columns=3), save_memory=request.param).eval()
    before = copy.deepcopy(model.state_dict())
    image = torch.randn(1, 3, 70, 98)
    with torch.no_grad():
        yield model, image, model(image)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_torch_export_of_an_evaluating_backbone(evaluating):
    model, image, features = evaluating
    exported = torch.export.export(model, (image,)).module()
    for actual, expected in zip(exported(image), features, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('dynamo', [False, True], ids=['torchscript', 'dynamo'])
def test_onnx_runtime_gives_the_features_of_an_evaluating_backbone(evaluating, dynamo, tmp_path):
    onnxruntime = pytest.importorskip('onnxruntime')
    model, image, features = evaluating
    path = str(tmp_path / 'revcol.onnx')
    torch.onnx.export(model, (image,), path, dynamo=dynamo, input_names=['image'])
    outputs = onnxruntime.InferenceSession(path).run(None, {'image': image.numpy()})
    for actual, expected in zip(outputs, features, strict=True):
        torch.testing.assert_close(torch.from_numpy(actual), expected, rtol=1e-4, atol=1e-4)
