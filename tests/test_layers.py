"""The layers of RevCol's columns."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from revcol_mm.models.layers import ConvNeXtBlock, PointwiseLinear


def test_drop_path_keeps_the_expectation():
    block = ConvNeXtBlock(32, drop_path_rate=0.5, layer_scale_init_value=1.0)
    x = torch.rand(1, 32, 2, 2).expand(20000, -1, -1, -1)
    with torch.no_grad():
        mean = (block(x) - x).mean(0)
        expected = (block.eval()(x[:1]) - x[:1])[0]
    torch.testing.assert_close(mean, expected, rtol=0.05, atol=1e-4)


def test_in_place_activation_does_not_change_what_hooks_see():
    block = ConvNeXtBlock(8)
    image = torch.randn(1, 8, 4, 4)
    seen = []
    with torch.no_grad():
        expected = block(image)
        block.pwconv1.register_forward_hook(lambda module, inputs, output: seen.extend((inputs[0], output)))
        assert torch.equal(block(image), expected)
        normalized, hidden = seen
        assert torch.equal(hidden, F.linear(normalized, block.pwconv1.weight, block.pwconv1.bias))


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize('size', [(5, 7), (1, 1)])
@pytest.mark.parametrize('channels_last', [True, False])
def test_pointwise_linear_equals_linear(dtype, size, channels_last, device):
    layer, plain = PointwiseLinear(6, 10).to(device, dtype), nn.Linear(6, 10).to(device, dtype)
    plain.load_state_dict(layer.state_dict())
    x = torch.randn(2, *size, 6, dtype=dtype, device=device)
    if not channels_last:
        x = x.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    results = []
    for each in (layer, plain):
        leaf = x.detach().requires_grad_()
        output = each(leaf)
        output.backward(torch.linspace(-1, 1, output.numel()).view_as(output).to(output))
        results.append([output, leaf.grad, each.weight.grad, each.bias.grad])
    for actual, expected in zip(*results):
        torch.testing.assert_close(actual, expected)


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason='needs oneDNN')
def test_pointwise_linear_is_a_convolution_only_in_eager_float32(monkeypatch):
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
