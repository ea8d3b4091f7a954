"""Unbiased linear CKA over minibatches, and tools/analysis/cka.py."""

import json

import numpy as np
import pytest
import torch

from revcol_mm.analysis.cka import cka, gram, layer_grams, unbiased_hsic

from .random_checkpoint import CLASSIFIER, PLAIN_SEGMENTOR, SEGMENTOR, data_options, random_checkpoint

TOOL = 'tools/analysis/cka.py'


def direct_hsic(x, y):
    """Song et al. 2012: the mean of k_ij l_ij + k_ij l_qr - 2 k_ij l_iq over all distinct i, j, q, r."""
    k, m = x @ x.T, y @ y.T
    n = len(k)
    terms = [
        k[i, j] * m[i, j] + k[i, j] * m[q, r] - 2 * k[i, j] * m[i, q]
        for i, j, q, r in np.ndindex(n, n, n, n)
        if len({i, j, q, r}) == 4
    ]
    return np.mean(terms)


def cka_of(*features):
    return cka(unbiased_hsic(torch.stack([gram(f) for f in features])))


def test_hsic_equals_its_definition():
    x, y = torch.randn(7, 3, dtype=torch.float64), torch.randn(7, 2, dtype=torch.float64) + 5
    hsic = unbiased_hsic(torch.stack([gram(x), gram(y)]))
    expected = [[direct_hsic(a.numpy(), b.numpy()) for b in (x, y)] for a in (x, y)]
    np.testing.assert_allclose(hsic.numpy(), expected, rtol=1e-12)


def test_hsic_is_summed_over_minibatches_and_places_before_the_ratio():
    batches = [[torch.randn(6, 2, 2, 4).double() for _ in range(2)] for _ in range(3)]
    hsic, sums = 0, np.zeros((2, 2))
    for features in batches:
        hsic = hsic + unbiased_hsic(torch.stack([gram(f, (1, 2)) for f in features]))
        for place in (slice(0, 2), slice(2, 4)):
            flat = [f[..., place].flatten(1).numpy() for f in features]
            sums += [[direct_hsic(a, b) for b in flat] for a in flat]
    np.testing.assert_allclose(cka(hsic)[0, 1], sums[0, 1] / np.sqrt(sums[0, 0] * sums[1, 1]), rtol=1e-10)


def test_cka_is_one_for_rotated_scaled_and_shifted_features():
    x = torch.randn(16, 6, dtype=torch.float64)
    rotation, _ = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64))
    torch.testing.assert_close(cka_of(x, 3 * x @ rotation + 100), torch.ones(2, 2).double())


def test_too_small_minibatches_and_features_off_the_grid_are_errors():
    with pytest.raises(ValueError, match='at least 4 images in a minibatch, got 3'):
        cka_of(torch.rand(3, 2))
    with pytest.raises(ValueError, match=r'features \(2, 3, 5, 4\) cannot be divided into 2 x 2 places'):
        gram(torch.rand(2, 3, 5, 4), (2, 2))


def test_layers_are_recorded_while_a_network_runs():
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.ReLU(), torch.nn.Conv2d(4, 2, 1))
    image = torch.rand(5, 3, 2, 2)
    first, last = layer_grams(network, image, ['0', '2'])
    torch.testing.assert_close(first, gram(network[0](image)))
    torch.testing.assert_close(last, gram(network(image)))
    assert not any(module._forward_hooks for module in network.modules())


def test_layers_without_a_tensor_as_output_are_errors():
    network = torch.nn.Sequential(torch.nn.MultiheadAttention(4, 1))
    network.idle = torch.nn.ReLU()
    network.forward = lambda x: network[0](x, x, x)
    with pytest.raises(ValueError, match='layer 0 returns a tuple, not a tensor'):
        layer_grams(network, torch.rand(5, 4), ['0'])
    with pytest.raises(ValueError, match='layers do not run: idle'):
        layer_grams(network, torch.rand(5, 4), ['idle'])
    assert not network[0]._forward_hooks


def test_tool_compares_columns_with_a_plain_network(sample_data, tmp_path, call_tool, device):
    printed, error = call_tool(
        *(TOOL, SEGMENTOR, random_checkpoint(SEGMENTOR)),
        *('--plain', PLAIN_SEGMENTOR, random_checkpoint(PLAIN_SEGMENTOR)),
        *('--size', 64, 64, '--batch-size', 4, '--passes', 2, '--device', device),
        *('--out', tmp_path, *data_options(sample_data, 'ade20k')),
    )
    assert not error
    report = json.loads((tmp_path / 'cka.json').read_text())
    names, values = report['names'], np.array(report['cka'])
    assert names[:3] == ['image', 'labels', 'column 0 level 0']
    assert names[17:19] == ['column 3 level 3', 'stages.0.0']
    assert values.shape == (36, 36)
    np.testing.assert_allclose(values, values.T)
    np.testing.assert_allclose(np.diag(values), 1)
    assert f'| column 3 level 3 | {values[0, 17]:.3f} | {values[1, 17]:.3f} |' in printed
    for figure in ('cka.png', 'cka_pairs.png'):
        assert (tmp_path / figure).stat().st_size > 10_000


def test_tool_compares_whole_images_of_a_classifier(sample_data, tmp_path, call_tool, device):
    call_tool(
        *(TOOL, CLASSIFIER, random_checkpoint(CLASSIFIER), '--batch-size', 8, '--device', device),
        *('--out', tmp_path, *data_options(sample_data, 'imagenet')),
    )
    report = json.loads((tmp_path / 'cka.json').read_text())
    assert report['cka'][0][2] > 0.5  # level 0 of column 0 is almost linear in the image


@pytest.mark.parametrize(
    'config, options, message',
    [
        (CLASSIFIER, ('--batch-size', 3), '--batch-size must be at least 4 for an unbiased estimate, got 3'),
        (CLASSIFIER, ('--batch-size', 4, '--passes', 0), '--passes must be at least 1, got 0'),
        (SEGMENTOR, ('--batch-size', 5), 'the test split has 4 images, fewer than a batch of 5'),
        (
            SEGMENTOR,
            ('--batch-size', 4, '--size', 60, 64),
            'height and width must be multiples of 32, got 60 and 64',
        ),
        (
            SEGMENTOR,
            ('--batch-size', 4, '--layers', 'blocks.*', '--plain', PLAIN_SEGMENTOR),
            'it has downsample_layers, stages',
        ),
        (PLAIN_SEGMENTOR, ('--batch-size', 4), 'ConvNeXt has no columns: use it with --plain'),
    ],
)
def test_invalid_input_is_an_error_in_one_line(config, options, message, sample_data, call_tool):
    if '--plain' in options:
        options += (random_checkpoint(PLAIN_SEGMENTOR),)
    data = data_options(sample_data, 'imagenet' if config == CLASSIFIER else 'ade20k')
    _, error = call_tool(TOOL, config, random_checkpoint(config), *options, *data)
    assert error.startswith('error: ') and message in error
