"""The backbone equals the published model, and takes and refuses what its documentation says."""

import doctest

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import revcol_mm.models.backbones.revcol as revcol_module
from revcol_mm import RevCol
from revcol_mm.models.layers import ConvNeXtBlock, PointwiseLinear

SMALL = dict(channels=(8, 16, 24, 32), layers=(1, 2, 2, 1), num_columns=3)
HUGE = dict(SMALL, level_connection='huge')


def golden_model(golden, dtype=torch.float32):
    config = golden['config']
    arch = {key: config[key] for key in ('channels', 'layers', 'num_columns', 'level_connection')}
    model = RevCol(arch=arch, kernel_size=config['kernel_size']).to(golden['input'].device, dtype)
    model.load_state_dict(golden['state_dict'], strict=True)
    return model


def assert_near(actual, expected, rtol=1e-4):
    """Within ``rtol`` of the tensor's largest value: single elements may be sums that cancel."""
    scale = expected.abs().max().item()
    torch.testing.assert_close(actual, expected.to(actual), rtol=0, atol=rtol * max(scale, 1e-12))


def test_every_column_equals_the_published_model(golden):
    model = golden_model(golden)
    columns = list(model.forward_columns(golden['input']))
    assert len(columns) == len(golden['columns'])
    for actual, expected in zip(columns, golden['columns']):
        assert len(actual) == len(expected) == 4
        for level, reference in zip(actual, expected):
            assert_near(level, reference)


@torch.no_grad()
def test_the_last_column_gives_back_every_earlier_one(golden):
    model = golden_model(golden, torch.float64).eval()
    image = golden['input'].double()
    *_, last = model.forward_columns(image)  # the fixture's is stored in float32, which is not enough
    earlier = reversed(golden['columns'][:-1])
    for actual, expected in zip(model.reconstruct_columns(model.stem(image), last), earlier, strict=True):
        for level, reference in zip(actual, expected, strict=True):
            assert_near(level, reference.double(), rtol=1e-6)


@torch.no_grad()
def test_reconstruction_in_float64_is_good_to_1e_8_after_8_columns(device):
    model = RevCol(arch=dict(SMALL, num_columns=9), layer_scale_init_value=0.3).to(device, torch.float64)
    image = torch.rand(1, 3, 64, 64, dtype=torch.float64, device=device)
    with pytest.raises(RuntimeError, match='eval'):
        next(model.reconstruct_columns(model.stem(image), []))
    *columns, last = model.eval().forward_columns(image)
    *_, first = model.reconstruct_columns(model.stem(image), last)
    for level, reference in zip(first, columns[0], strict=True):
        assert_near(level, reference, rtol=1e-8)


@pytest.mark.parametrize('dtype, rtol', [(torch.float32, 1e-4), (torch.float64, 1e-6)])
@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last])
def test_outputs_loss_and_gradients_equal_the_published_model(golden, memory_format, dtype, rtol):
    """The fixtures were rounded to float32 when they were stored."""
    model = golden_model(golden, dtype).to(memory_format=memory_format)
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


@pytest.mark.parametrize('arch', ['tiny', 'base', 'huge'])
def test_keys_and_shapes_are_the_published_ones(arch, published_keys):
    heads = ('cls.', 'cls_blocks.', 'decoder_blocks.')
    expected = {k: v for k, v in published_keys[arch].items() if not k.startswith(heads)}
    with torch.device('meta'):
        model = RevCol(arch=arch)
    assert {k: list(v.shape) for k, v in model.state_dict().items()} == expected


@pytest.mark.parametrize(
    'arch, millions',
    [
        ('tiny', 29.942),
        ('small', 60.054),
        ('base', 138.038),
        ('large', 272.068),
        ('xlarge', 832.011),
        ('huge', 2154.713),
    ],
)
def test_sizes_are_the_published_ones(arch, millions):
    with torch.device('meta'):
        model = RevCol(arch=arch)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=5e-4)


@pytest.mark.parametrize('size', [(32, 32), (33, 47), (63, 95), (64, 64), (70, 130)])
@pytest.mark.parametrize('arch', [SMALL, HUGE])
def test_any_size_from_32_on(arch, size, device):
    features = RevCol(arch=arch).to(device)(torch.rand(1, 3, *size, device=device))
    height, width = size[0] // 4, size[1] // 4
    for feature, channels in zip(features, arch['channels'], strict=True):
        assert feature.shape == (1, channels, height, width)
        height, width = height // 2, width // 2


@pytest.mark.parametrize('shape', [(1, 3, 31, 64), (1, 3, 64, 31), (1, 1, 64, 64), (3, 64, 64)])
def test_a_wrong_image_shape_is_an_error_that_names_it(shape):
    with pytest.raises(ValueError, match=str(shape[-1])):
        RevCol(arch=SMALL)(torch.rand(shape))


def test_out_indices_choose_and_order_levels():
    model = RevCol(arch=SMALL, out_indices=(-1, 1)).eval()
    full = RevCol(arch=SMALL).eval()
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
        (
            dict(arch=dict(channels=(8, 16), layers=(1, 1), num_columns=2, level_connection='huge')),
            '3',
        ),
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
def test_a_bad_argument_is_an_error_that_names_it(arguments, message):
    with pytest.raises(ValueError, match=message):
        RevCol(**{'arch': SMALL, **arguments})


def test_an_arch_with_other_numbers_of_levels_works():
    arch = dict(channels=(8, 12), layers=(1, 1), num_columns=2)
    features = RevCol(arch=arch, out_indices=(0, 1))(torch.rand(1, 3, 20, 24))
    assert [tuple(f.shape) for f in features] == [(1, 8, 5, 6), (1, 12, 2, 3)]


def test_frozen_columns_stay_frozen_and_in_evaluation_mode_across_train():
    model = RevCol(arch=SMALL, frozen_columns=2, drop_path_rate=0.5)
    assert model.train() is model
    frozen = [model.stem, model.subnet0, model.subnet1]
    assert not any(m.training for part in frozen for m in part.modules())
    assert not any(p.requires_grad for part in frozen for p in part.parameters())
    assert model.subnet2.training and all(p.requires_grad for p in model.subnet2.parameters())
    sum(f.sum() for f in model(torch.rand(1, 3, 32, 32))).backward()
    assert {n.split('.')[0] for n, p in model.named_parameters() if p.grad is not None} == {'subnet2'}


def test_no_column_is_frozen_by_default():
    assert all(p.requires_grad for p in RevCol(arch=SMALL).parameters())


def test_every_parameter_gets_a_finite_gradient(device):
    model = RevCol(arch=HUGE, layer_scale_init_value=0.3).to(device)
    sum(f.square().mean() for f in model(torch.rand(2, 3, 64, 64, device=device))).backward()
    for name, param in model.named_parameters():
        assert param.grad is not None and param.grad.isfinite().all(), name


@torch.no_grad()
def test_training_keeps_alphas_away_from_zero_and_evaluation_leaves_them_alone():
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
    assert torch.equal(evaluated[0], trained[0])  # evaluation used the bounded value all the same


def test_two_forward_passes_before_one_backward():
    model = RevCol(arch=SMALL, layer_scale_init_value=0.3)
    images = torch.rand(2, 1, 3, 32, 32)
    (model(images[0])[3].sum() + model(images[1])[3].sum()).backward()
    together = model.subnet1.alpha3.grad.clone()
    model.zero_grad()
    for image in images:
        model(image)[3].sum().backward()
    assert_near(model.subnet1.alpha3.grad, together, rtol=1e-5)


def test_evaluation_is_deterministic_and_training_with_drop_path_is_not(device):
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


def test_drop_path_keeps_the_expectation():
    model = RevCol(arch=dict(SMALL, layers=(1, 1, 1, 1)), drop_path_rate=0.5)
    block = model.subnet0.level3.blocks[0]
    nn.init.ones_(block.gamma)
    x = torch.rand(1, 32, 2, 2).expand(20000, -1, -1, -1)
    with torch.no_grad():
        mean = (block(x) - x).mean(0)
        expected = (block.eval()(x[:1]) - x[:1])[0]
    torch.testing.assert_close(mean, expected, rtol=0.05, atol=1e-4)


@pytest.mark.parametrize('save_memory', [True, False])
@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
def test_features_are_laid_out_as_the_image_though_columns_are_channels_last(layout, save_memory, device):
    model = RevCol(arch=SMALL, save_memory=save_memory).to(device)
    image = torch.rand(2, 3, 64, 64, device=device)
    for feature in model(image.contiguous(memory_format=layout)):
        assert feature.is_contiguous(memory_format=layout)
    for feature in next(model.forward_columns(image)):
        assert feature.is_contiguous(memory_format=torch.channels_last)


def test_roi_align_reads_the_features_aright(device):
    """MMCV's takes features that are laid out channels-last for contiguous ones, without an error."""
    mmcv_ops = pytest.importorskip('mmcv.ops')
    torchvision_ops = pytest.importorskip('torchvision.ops')
    feature = RevCol(arch=SMALL).to(device)(torch.rand(1, 3, 64, 96, device=device))[0].detach()
    boxes = torch.tensor([[0, 8.0, 4.0, 50.0, 40.0]], device=device)
    expected = torchvision_ops.roi_align(feature, boxes, (7, 7), 1 / 4, aligned=True)
    assert_near(mmcv_ops.roi_align(feature, boxes, (7, 7), 1 / 4, 0, 'avg', True), expected)


def test_the_documented_example_runs():
    assert doctest.testmod(revcol_module).failed == 0


def test_a_hook_on_the_hidden_layer_keeps_what_it_saw():
    """Without a graph the activation overwrites the hidden layer, unless somebody looks at it."""
    block = ConvNeXtBlock(8)
    image = torch.randn(1, 8, 4, 4)
    seen = []
    with torch.no_grad():
        expected = block(image)
        block.pwconv1.register_forward_hook(lambda module, inputs, output: seen.extend((inputs[0], output)))
        assert torch.equal(block(image), expected)
        normalized, hidden = seen
        assert torch.equal(hidden, F.linear(normalized, block.pwconv1.weight, block.pwconv1.bias))


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize('size', [(5, 7), (1, 1)])
@pytest.mark.parametrize('layout', ['channels last', 'channels first'])
def test_a_pointwise_linear_layer_is_a_linear_layer(dtype, size, layout, device):
    torch.manual_seed(0)
    layer, plain = PointwiseLinear(6, 10).to(device, dtype), nn.Linear(6, 10).to(device, dtype)
    plain.load_state_dict(layer.state_dict())
    x = torch.randn(2, *size, 6, dtype=dtype, device=device)
    if layout == 'channels first':
        x = x.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    results = []
    for each in (layer, plain):
        leaf = x.detach().requires_grad_()
        output = each(leaf)
        output.backward(torch.linspace(-1, 1, output.numel()).view_as(output).to(output))
        results.append([output, leaf.grad, each.weight.grad, each.bias.grad])
    for actual, expected in zip(*results):
        torch.testing.assert_close(actual, expected)


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason='without oneDNN they are linear')
def test_pointwise_linear_layers_are_convolutions_in_float32_on_a_cpu_but_not_in_exported_models(monkeypatch):
    widths = []
    convolve = F.conv2d
    monkeypatch.setattr(
        F, 'conv2d', lambda x, weight, *args: widths.append(weight.shape) or convolve(x, weight, *args)
    )
    layer, x = PointwiseLinear(6, 10), torch.randn(2, 5, 7, 6)
    layer(x)
    assert widths == [(10, 6, 1, 1)]
    with torch.autocast('cpu', torch.bfloat16):
        layer(x)
    layer.double()(x.double())
    layer.float()
    torch.jit.trace(layer, x, check_trace=False)
    torch.export.export(layer, (x,))
    assert len(widths) == 1


@pytest.mark.parametrize('save_memory', [False, True])
def test_gradients_reach_the_columns_channels_last_whatever_heads_return(save_memory, device):
    model = RevCol('nano', save_memory=save_memory).to(device)
    layouts = []
    for level in model.columns[-1].children():
        level.register_full_backward_hook(lambda _, __, grads: layouts.append(grads[0].stride()[1]))
    features = model(torch.randn(2, 3, 64, 96, device=device))
    assert all(feature.is_contiguous() for feature in features)
    sum((feature * torch.randn(feature.shape, device=device)).sum() for feature in features).backward()
    assert layouts == [1] * 4
