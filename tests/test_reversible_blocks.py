"""Blocks of one network that train without storing the activations between them."""

import copy
import itertools
from functools import partial

import pytest
import torch
from mmengine.registry import MODELS
from torch import nn
from torch.utils.checkpoint import checkpoint_sequential

from revcol_mm.models import ReversibleBlocks
from revcol_mm.testing import peak_bytes

NETWORKS = {
    'ViT': dict(
        type='mmpretrain.VisionTransformer',
        arch=dict(embed_dims=32, num_layers=6, num_heads=2, feedforward_channels=64),
        img_size=64,
        drop_path_rate=0.3,
    ),
    'ConvNeXt': dict(
        type='mmpretrain.ConvNeXt',
        arch=dict(depths=[1, 1, 6, 1], channels=[8, 16, 32, 32]),
        drop_path_rate=0.3,
    ),
    'ResNet': dict(type='mmpretrain.ResNet', depth=101, base_channels=8, stem_channels=8),
    'Swin': dict(
        type='mmpretrain.SwinTransformer',
        arch=dict(embed_dims=16, depths=[2, 2, 6, 2], num_heads=[2, 2, 2, 2]),
        drop_path_rate=0.3,
        pad_small_map=True,
    ),
}


def blocks(name):
    """Return equal blocks of a network with random weights, an input, and additional arguments."""
    torch.manual_seed(0)
    network = MODELS.build(copy.deepcopy(NETWORKS[name]))
    for param in network.parameters():
        param.data.add_(0.02 * torch.randn_like(param))
    torch.manual_seed(0)
    if name == 'ViT':
        return list(network.layers), torch.randn(2, 17, 32)
    if name == 'Swin':
        return list(network.stages[2].blocks), torch.randn(2, 64, 64), (8, 8)
    if name == 'ConvNeXt':
        return list(network.stages[2]), torch.randn(2, 32, 8, 8)
    return list(network.layer3)[1:7], torch.randn(2, 128, 8, 8)


def train(module, x, *arguments, output=lambda result: result):
    """Return output, gradients and buffers of one step, with random numbers from seed 0."""
    torch.manual_seed(0)
    x = x.clone().requires_grad_()
    module.train()  # which returns None in MMPretrain
    output = output(module(x, *arguments))
    output.square().mean().backward()
    return [output.detach(), x.grad, *(param.grad for param in module.parameters()), *module.buffers()]


@pytest.mark.parametrize('beta', [0.004, 0.1, 0.5])
@pytest.mark.parametrize('name', NETWORKS)
def test_reversible_gradients_equal_plain_ones(name, beta):
    layers, *inputs = blocks(name)
    reversible = ReversibleBlocks(layers, beta).double()
    plain = ReversibleBlocks(copy.deepcopy(layers), beta, save_memory=False)
    inputs[0] = inputs[0].double()
    for mine, expected in zip(train(reversible, *inputs), train(plain, *inputs), strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-6, atol=1e-10)


@pytest.mark.parametrize('name', ['ViT', 'Swin'])
def test_network_that_iterates_over_its_blocks_takes_them_as_one_block(name):
    torch.manual_seed(0)
    network = MODELS.build({**NETWORKS[name], 'drop_path_rate': 0.0, 'out_indices': (0,)}).double()
    owner, attribute = (network, 'layers') if name == 'ViT' else (network.stages[0], 'blocks')
    layers = nn.Sequential(*getattr(owner, attribute))
    setattr(owner, attribute, ReversibleBlocks(layers))
    images, results = torch.rand(2, 3, 64, 64, dtype=torch.float64), []
    with pytest.raises(TypeError, match=r'not block by block: .* nn.ModuleList\(\[ReversibleBlocks'):
        network(images)
    for save_memory in (False, True):
        setattr(owner, attribute, nn.ModuleList([ReversibleBlocks(layers, save_memory=save_memory)]))
        network.zero_grad()
        results.append(train(network, images, output=lambda features: features[0]))
    for expected, actual in zip(*results, strict=True):
        if expected is not None:
            torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-10)


@torch.no_grad()
def test_block_that_occurs_twice_runs_twice():
    block, x = nn.Linear(4, 4), torch.rand(2, 4)
    copies = ReversibleBlocks([copy.deepcopy(block), copy.deepcopy(block)])
    assert torch.equal(ReversibleBlocks([block, block])(x), copies(x))


def test_block_that_changes_the_shape_is_an_error():
    blocks = ReversibleBlocks([nn.Identity(), nn.Conv2d(3, 4, 1)])
    with pytest.raises(ValueError, match=r'but Conv2d maps \(1, 3, 8, 8\) to \(1, 4, 8, 8\)'):
        blocks(torch.rand(1, 3, 8, 8))


@pytest.mark.parametrize('name', NETWORKS)
def test_difference_from_the_plain_sequence_is_proportional_to_beta(name):
    layers, x, *arguments = blocks(name)
    expected, errors = x, []
    with torch.no_grad():
        for layer in layers:
            expected = layer.eval()(expected, *arguments)
        for beta in (0.02, 0.01, 0.005):
            output = ReversibleBlocks(layers, beta).eval()(x, *arguments)
            errors.append(((output - expected).norm() / expected.norm()).item())
    assert 0 < errors[0] < 0.5
    for error, half in itertools.pairwise(errors):
        assert half == pytest.approx(error / 2, rel=0.2)


def test_state_dict_keys_are_those_of_sequential():
    layers = nn.Sequential(*blocks('ConvNeXt')[0])
    assert ReversibleBlocks(layers).load_state_dict(layers.state_dict()).missing_keys == []


def test_memory_is_below_checkpointing_and_hardly_grows_with_blocks(device):
    def step(run, x):
        run(x.requires_grad_()).sum().backward()

    peaks = []
    for number in (4, 16):
        layers = [nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.GELU()) for _ in range(number)]
        module = ReversibleBlocks(layers).to(device).train()
        x = torch.rand(2, 8, 128, 128, device=device)
        step(module, x)  # allocates gradients
        peaks.append(peak_bytes(partial(step, module, x), device))
    checkpointed = partial(checkpoint_sequential, layers, len(layers), use_reentrant=False)
    assert peaks[1] < peak_bytes(lambda: step(lambda x: checkpointed(input=x), x), device)
    assert peaks[1] < 1.6 * peaks[0]  # 4 bits per element and block


@pytest.mark.parametrize('beta', [0, 1, 0.0039, float('nan')])
def test_invalid_beta_is_an_error(beta):
    with pytest.raises(ValueError, match=f'beta must be at least 0.004 and below 1, got {beta}'):
        ReversibleBlocks([nn.Identity()], beta)
