"""The RevCol backbone: equality with the published model, options, and errors."""

import doctest

import pytest
import torch

import revcol_mm.models.backbones.revcol as revcol_module
from revcol_mm import RevCol

SMALL = dict(channels=(8, 16, 24, 32), layers=(1, 2, 2, 1), num_columns=3)
HUGE = dict(SMALL, level_connection='huge')


def golden_model(golden, dtype=torch.float32):
    config = golden['config']
    arch = {key: config[key] for key in ('channels', 'layers', 'num_columns', 'level_connection')}
    model = RevCol(arch=arch, kernel_size=config['kernel_size']).to(golden['input'].device, dtype)
    model.load_state_dict(golden['state_dict'], strict=True)
    return model


def assert_near(actual, expected, rtol=1e-4):
    """Compare relative to the tensor's largest value, because single elements may be sums that cancel."""
    scale = expected.abs().max().item()
    torch.testing.assert_close(actual, expected.to(actual), rtol=0, atol=rtol * max(scale, 1e-12))


def test_every_column_equals_the_published_model(golden):
    columns = golden_model(golden).forward_columns(golden['input'])
    for actual, expected in zip(columns, golden['columns'], strict=True):
        for level, reference in zip(actual, expected, strict=True):
            assert_near(level, reference)


@pytest.mark.parametrize(
    'dtype, rtol, save_memory',
    [(torch.float32, 1e-4, False), (torch.float32, 1e-4, True), (torch.float64, 1e-6, False)],
)
@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last])
def test_outputs_loss_and_gradients_equal_the_published_model(
    golden, memory_format, dtype, rtol, save_memory
):
    """The tolerance in float64 is that of the reference, which was stored in float32."""
    model = golden_model(golden, dtype).to(memory_format=memory_format)
    model.save_memory = save_memory
    image = golden['input'].to(dtype, copy=True, memory_format=memory_format).requires_grad_()
    outputs = model(image)
    for actual, expected in zip(outputs, golden['outputs'], strict=True):
        assert_near(actual, expected, rtol)
    loss = sum((c * w).sum() for c, w in zip(outputs, golden['output_weights'], strict=True))
    assert loss.item() == pytest.approx(float(golden['loss']), rel=rtol)
    loss.backward()
    assert_near(image.grad, golden['input_grad'], rtol)
    gradients = {name: param.grad for name, param in model.named_parameters()}
    assert gradients.keys() == golden['param_grads'].keys()
    for name, expected in golden['param_grads'].items():
        assert gradients[name] is not None, name
        assert_near(gradients[name], expected, rtol)


@torch.no_grad()
@pytest.mark.parametrize('arch', [SMALL, HUGE])
def test_reconstruction_error_is_below_1e_8_after_8_columns_in_float64(arch, device):
    model = RevCol(arch=dict(arch, num_columns=9), layer_scale_init_value=0.3).to(device, torch.float64)
    image = torch.rand(1, 3, 64, 64, dtype=torch.float64, device=device)
    with pytest.raises(RuntimeError, match='eval'):
        next(model.reconstruct_columns(model.stem(image), []))
    *columns, last = model.eval().forward_columns(image)
    reconstructed = model.reconstruct_columns(model.stem(image), last)
    for actual, expected in zip(reconstructed, reversed(columns), strict=True):
        for level, reference in zip(actual, expected, strict=True):
            assert_near(level, reference, rtol=1e-8)


@pytest.mark.parametrize('shape', [(1, 3, 31, 64), (1, 3, 64, 31), (1, 1, 64, 64), (3, 64, 64)])
def test_invalid_image_shape_is_an_error(shape):
    with pytest.raises(ValueError, match=str(shape[-1])):
        RevCol(arch=SMALL)(torch.rand(shape))


def test_out_indices_select_and_order_levels():
    model, full = RevCol(arch=SMALL, out_indices=(-1, 1)), RevCol(arch=SMALL)
    full.load_state_dict(model.state_dict())
    image = torch.rand(1, 3, 64, 64)
    last, second = model(image)
    features = full(image)
    assert torch.equal(last, features[3]) and torch.equal(second, features[1])
    assert model.out_indices == (3, 1)
    assert model.out_channels == (32, 16) and model.out_strides == (32, 8)


@pytest.mark.parametrize(
    'arguments, message',
    [
        (dict(arch='giant'), 'giant'),
        (dict(arch=dict(SMALL, width=3)), 'width'),
        (dict(arch=dict(channels=(8, 16), layers=(1, 1))), 'num_columns'),
        (dict(arch=dict(SMALL, layers=(1, 2, 2))), 'one number for each level'),
        (dict(arch=dict(SMALL, channels=(8, 16, 24, 0))), 'channels'),
        (dict(arch=dict(SMALL, num_columns=0)), 'num_columns'),
        (dict(arch=dict(SMALL, level_connection='wide')), 'wide'),
        (dict(arch=dict(channels=(8, 16), layers=(1, 1), num_columns=2, level_connection='huge')), '3'),
        (dict(kernel_size=4), 'kernel_size.*4'),
        (dict(kernel_size=-1), 'kernel_size.*-1'),
        (dict(drop_path_rate=1.0), 'drop_path_rate.*1.0'),
        (dict(drop_path_rate=-0.1), 'drop_path_rate.*-0.1'),
        (dict(out_indices=(0, 4)), 'out_indices.*4'),
        (dict(out_indices=(-5,)), 'out_indices.*-5'),
        (dict(out_indices=()), 'out_indices'),
        (dict(frozen_columns=4), 'frozen_columns.*4'),
        (dict(frozen_columns=-1), 'frozen_columns.*-1'),
    ],
)
def test_invalid_argument_is_an_error(arguments, message):
    with pytest.raises(ValueError, match=message):
        RevCol(**{'arch': SMALL, **arguments})


def test_frozen_columns_stay_frozen_and_in_evaluation_mode():
    model = RevCol(arch=SMALL, frozen_columns=2, drop_path_rate=0.5)
    assert model.train() is model
    frozen = [model.stem, model.subnet0, model.subnet1]
    assert not any(m.training for part in frozen for m in part.modules())
    assert not any(p.requires_grad for part in frozen for p in part.parameters())
    assert model.subnet2.training and all(p.requires_grad for p in model.subnet2.parameters())
    sum(f.sum() for f in model(torch.rand(1, 3, 32, 32))).backward()
    assert {n.split('.')[0] for n, p in model.named_parameters() if p.grad is not None} == {'subnet2'}


@torch.no_grad()
def test_alphas_are_bounded_in_place_only_in_training():
    model = RevCol(arch=SMALL)
    alpha = model.subnet1.alpha0
    alpha.view(-1)[:4] = torch.tensor([0.0, -0.0, 1e-5, -1e-5])
    before = alpha.clone()
    image = torch.rand(1, 3, 32, 32)
    evaluated = model.eval()(image)
    assert torch.equal(alpha, before)
    trained = model.train()(image)
    assert alpha.view(-1)[:4].tolist() == pytest.approx([1e-3, 1e-3, 1e-3, -1e-3])
    assert torch.equal(alpha.view(-1)[4:], before.view(-1)[4:])
    assert torch.equal(evaluated[0], trained[0])  # evaluation computes with bounded values, too


def test_bounding_alphas_keeps_earlier_graphs_valid():
    """Two forward passes before one backward pass give the same gradients as two separate passes."""
    model = RevCol(arch=SMALL, layer_scale_init_value=0.3)
    images = torch.rand(2, 1, 3, 32, 32)
    (model(images[0])[3].sum() + model(images[1])[3].sum()).backward()
    together = model.subnet1.alpha3.grad.clone()
    model.zero_grad()
    for image in images:
        model(image)[3].sum().backward()
    assert_near(model.subnet1.alpha3.grad, together, rtol=1e-5)


def test_drop_path_is_random_only_in_training(device):
    model = RevCol(arch=SMALL, drop_path_rate=0.5, layer_scale_init_value=1.0).to(device)
    image = torch.rand(64, 3, 32, 32, device=device)
    assert not torch.equal(model(image)[3], model(image)[3])
    model.eval()
    assert torch.equal(model(image)[3], model(image)[3])


def test_drop_path_rates_rise_from_zero_in_every_column():
    model = RevCol(arch=SMALL, drop_path_rate=0.5)
    for column in model.columns:
        rates = [m.drop_path_rate for m in column.modules() if hasattr(m, 'drop_path_rate')]
        assert rates == pytest.approx([0, 0.1, 0.2, 0.3, 0.4, 0.5])


@pytest.mark.parametrize('save_memory', [True, False])
@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last])
def test_features_have_the_memory_format_of_the_image(memory_format, save_memory, device):
    """Inside the columns, features and gradients are channels-last. MMCV's RoIAlign needs contiguous ones."""
    model = RevCol(arch=SMALL, save_memory=save_memory).to(device)
    image = torch.rand(2, 3, 64, 64, device=device).contiguous(memory_format=memory_format)
    for feature in next(model.forward_columns(image)):
        assert feature.is_contiguous(memory_format=torch.channels_last)
    channel_strides = []
    for level in model.columns[-1].levels:
        level.register_full_backward_hook(lambda _, __, grads: channel_strides.append(grads[0].stride(1)))
    features = model(image)
    assert all(feature.is_contiguous(memory_format=memory_format) for feature in features)
    sum((feature * torch.randn(feature.shape, device=device)).sum() for feature in features).backward()
    assert channel_strides == [1] * 4


def test_documented_example_runs():
    assert doctest.testmod(revcol_module).failed == 0
