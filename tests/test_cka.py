"""CKA over minibatches, and the images and labels that it compares features with."""

import json

import numpy as np
import pytest
import torch
from mmengine.config import Config

from revcol_mm.analysis import labelled_images
from revcol_mm.analysis.cka import MinibatchCKA, gram, layer_grams, unbiased_hsic
from revcol_mm.analysis.labelled_images import UNLABELLED, LabelledImages, label_shares
from revcol_mm.apis import init_model

from .subprocesses import REPO

TOOL = 'tools/analysis/cka.py'
SEGMENTOR = 'configs/upernet_revcol_nano_sample.py'
PLAIN = 'configs/baselines/upernet_convnext_sample.py'
CLASSIFIER = 'configs/revcol_nano_sample.py'


def direct_hsic(x, y):
    """Song et al. 2012: the mean of k_ij l_ij + k_ij l_qr - 2 k_ij l_iq over all different i, j, q, r."""
    k, m = x @ x.T, y @ y.T
    n = len(k)
    terms = [
        k[i, j] * m[i, j] + k[i, j] * m[q, r] - 2 * k[i, j] * m[i, q]
        for i, j, q, r in np.ndindex(n, n, n, n)
        if len({i, j, q, r}) == 4
    ]
    return np.mean(terms)


def cka_of(*batches):
    cka = MinibatchCKA()
    for features in batches:
        cka.update([gram(f) for f in features])
    return cka.compute()


def test_hsic_is_the_mean_over_all_quadruples_of_images():
    x, y = torch.randn(7, 3, dtype=torch.float64), torch.randn(7, 2, dtype=torch.float64) + 5
    hsic = unbiased_hsic(torch.stack([gram(x), gram(y)]))
    expected = [[direct_hsic(a.numpy(), b.numpy()) for b in (x, y)] for a in (x, y)]
    np.testing.assert_allclose(hsic.numpy(), expected, rtol=1e-12)


def test_minibatches_and_places_average_hsic_before_the_ratio():
    batches = [[torch.randn(6, 2, 2, 4).double() for _ in range(2)] for _ in range(3)]
    cka = MinibatchCKA()
    for features in batches:
        cka.update([gram(f, (1, 2)) for f in features])
    sums = np.zeros((2, 2))
    for features in batches:
        for place in (slice(0, 2), slice(2, 4)):
            flat = [f[..., place].flatten(1).numpy() for f in features]
            sums += [[direct_hsic(a, b) for b in flat] for a in flat]
    np.testing.assert_allclose(cka.compute()[0, 1], sums[0, 1] / np.sqrt(sums[0, 0] * sums[1, 1]), rtol=1e-10)


def test_it_is_one_for_rotated_scaled_and_shifted_features():
    x = torch.randn(16, 6, dtype=torch.float64)
    rotation, _ = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64))
    torch.testing.assert_close(cka_of([x, 3 * x @ rotation + 100]), torch.ones(2, 2).double())


def test_it_is_zero_for_independent_features_on_average_and_the_biased_one_is_not():
    batches = [torch.randn(2, 8, 20).double().unbind() for _ in range(2000)]
    biased = np.mean([_biased_cka(x.numpy(), y.numpy()) for x, y in batches[:50]])
    assert abs(cka_of(*batches)[0, 1]) < 0.01 and biased > 0.5


def _biased_cka(x, y):
    x, y = x - x.mean(0), y - y.mean(0)
    return np.linalg.norm(x.T @ y) ** 2 / (np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y))


def test_the_result_does_not_depend_on_how_many_images_are_held_at_once():
    x = torch.randn(3000, 4, dtype=torch.float64)
    y = x @ torch.randn(4, 5, dtype=torch.float64) + torch.randn(3000, 5, dtype=torch.float64)
    (whole,), small, large = (
        [cka_of(*zip(x.split(size), y.split(size)))[0, 1].item()] for size in (3000, 8, 60)
    )
    assert 0.2 < whole < 0.9
    assert [*small, *large] == pytest.approx([whole, whole], abs=0.03)


def test_it_holds_no_more_after_more_minibatches():
    cka = MinibatchCKA()
    sizes = []
    for _ in range(3):
        cka.update([gram(torch.randn(8, 30)) for _ in range(4)])
        sizes.append(sum(value.nbytes for value in vars(cka).values()))
    assert sizes == [4 * 4 * 8] * 3


def test_too_small_a_minibatch_and_features_off_the_grid_are_refused():
    with pytest.raises(ValueError, match='at least 4 images in a minibatch, got 3'):
        cka_of([torch.rand(3, 2)])
    with pytest.raises(ValueError, match=r'features \(2, 3, 5, 4\) do not fall into 2 x 2 places'):
        gram(torch.rand(2, 3, 5, 4), (2, 2))


def test_layers_of_a_plain_network_are_taken_while_it_runs():
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.ReLU(), torch.nn.Conv2d(4, 2, 1))
    image = torch.rand(5, 3, 2, 2)
    first, last = layer_grams(network, image, ['0', '2'])
    torch.testing.assert_close(first, gram(network[0](image)))
    torch.testing.assert_close(last, gram(network(image)))
    assert not any(module._forward_hooks for module in network.modules())


def test_layers_without_an_output_that_compares_are_refused():
    network = torch.nn.Sequential(torch.nn.MultiheadAttention(4, 1))
    network.idle = torch.nn.ReLU()
    network.forward = lambda x: network[0](x, x, x)
    with pytest.raises(ValueError, match='layer 0 returns a tuple, not a tensor'):
        layer_grams(network, torch.rand(5, 4), ['0'])
    with pytest.raises(ValueError, match='layers do not run: idle'):
        layer_grams(network, torch.rand(5, 4), ['idle'])
    assert not network[0]._forward_hooks


def config_on(data, name, layout):
    cfg = Config.fromfile(REPO / name)
    for split in ('train', 'val', 'test'):
        cfg[f'{split}_dataloader'].dataset.data_root = f'{data / layout}/'
    return cfg


def test_labels_of_detection_are_those_of_segmentation_but_for_the_shape_of_the_digits(sample_data):
    """Both are of the same scenes, and are scaled to the same size by other transforms."""
    detection, segmentation = (
        LabelledImages(config_on(sample_data, name, layout), 'val', 4, size=(128, 96))
        for name, layout in (('configs/dino_revcol_nano_sample.py', 'coco'), (SEGMENTOR, 'ade20k'))
    )
    (boxes,), (masks,) = detection.batches(), segmentation.batches()
    assert boxes.images.shape == (4, 3, 128, 96) and torch.equal(boxes.images, masks.images)
    assert detection.classes[-1] == 'background' and segmentation.classes[0] == 'background'
    digit = masks.labels > 0  # in segmentation 0 is background
    same = boxes.labels[digit] == masks.labels[digit] - 1
    assert digit.sum() > 100 and same.float().mean() > 0.9  # the rest lies under a smaller digit's box
    assert (masks.labels == UNLABELLED).any() and (boxes.labels == 10).float().mean() > 0.3


@pytest.mark.parametrize('shorter, side', [(360, 352), (300, 288), (800, 800), (10, 32)])
def test_the_default_size_is_a_multiple_of_32(shorter, side):
    cfg = Config.fromfile(REPO / 'configs/upernet_revcol_nano_camvid.py')
    cfg.test_dataloader.dataset.pipeline[1].scale = (1333, shorter)
    assert labelled_images.testing_size(cfg) == (side, side)


def test_shares_are_those_of_the_pixels_with_a_label():
    labels = torch.zeros(1, 8, 16, dtype=torch.long)
    labels[0, :4, :8], labels[0, 4:, 8:] = 2, UNLABELLED
    shares = label_shares(labels, 3)
    assert shares.squeeze().tolist() == [[0.5, 0.5], [0, 0], [0.5, 0]]
    assert label_shares(torch.tensor([1, 0]), 2).tolist() == [[0, 1], [1, 0]]


def test_images_come_in_another_order_in_every_epoch_and_no_more_than_asked_for(sample_data):
    cfg = config_on(sample_data, CLASSIFIER, 'imagenet')
    images = LabelledImages(cfg, 'train', 4, num_images=10, seed=1)
    first, again, second = (torch.cat([b.images for b in images.batches(epoch)]) for epoch in (0, 0, 1))
    assert len(images) == 3 and first.shape == (10, 3, 64, 64)
    assert torch.equal(first, again) and not torch.equal(first, second)
    assert LabelledImages(cfg, 'train', 4, num_images=10, drop_last=True).num_images == 8


@pytest.fixture(scope='module')
def checkpoints(tmp_path_factory):
    """Random weights of a segmentor on RevCol and of one on ConvNeXt."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp('checkpoints')
    for name, config in (('revcol', SEGMENTOR), ('plain', PLAIN), ('classifier', CLASSIFIER)):
        torch.save(init_model(REPO / config, device='cpu').state_dict(), folder / f'{name}.pth')
    return folder


def on(data, layout):
    return '--cfg-options', *(f'{s}_dataloader.dataset.data_root={data / layout}' for s in ('train', 'test'))


def test_the_tool_compares_columns_with_a_plain_network(
    checkpoints, sample_data, tmp_path, call_tool, device
):
    printed, error = call_tool(
        *(TOOL, SEGMENTOR, checkpoints / 'revcol.pth', '--plain', PLAIN, checkpoints / 'plain.pth'),
        *('--size', 64, 64, '--batch-size', 4, '--passes', 2, '--device', device),
        *('--out', tmp_path, *on(sample_data, 'ade20k')),
    )
    assert not error
    report = json.loads((tmp_path / 'cka.json').read_text())
    names, values = report['names'], np.array(report['cka'])
    assert names[:3] == ['image', 'labels', 'column 0 level 0'] and names[17:19] == [
        'column 3 level 3',
        'stages.0.0',
    ]
    assert len(names) == 18 + 18 and values.shape == (36, 36)
    np.testing.assert_allclose(values, values.T)
    np.testing.assert_allclose(np.diag(values), 1)
    assert f'| column 3 level 3 | {values[0, 17]:.3f} | {values[1, 17]:.3f} |' in printed
    for figure in ('cka.png', 'cka_pairs.png'):
        assert (tmp_path / figure).stat().st_size > 10_000


def test_the_tool_takes_a_classifier(checkpoints, sample_data, tmp_path, call_tool, device):
    call_tool(
        *(TOOL, CLASSIFIER, checkpoints / 'classifier.pth', '--batch-size', 8, '--device', device),
        *('--out', tmp_path, *on(sample_data, 'imagenet')),
    )
    report = json.loads((tmp_path / 'cka.json').read_text())
    assert report['cka'][0][2] > 0.5  # level 0 of column 0 is nearly linear in the image


def test_what_cannot_be_analysed_is_an_error_in_one_line(checkpoints, sample_data, call_tool):
    classifier = (TOOL, CLASSIFIER, checkpoints / 'classifier.pth', *on(sample_data, 'imagenet'))
    segmentor = (TOOL, SEGMENTOR, checkpoints / 'revcol.pth', *on(sample_data, 'ade20k'))
    plain = (TOOL, PLAIN, checkpoints / 'plain.pth', *on(sample_data, 'ade20k'))
    compared = ('--plain', PLAIN, checkpoints / 'plain.pth')
    for arguments, message in (
        ((*classifier, '--batch-size', 3), '--batch-size is at least 4 for an unbiased estimate, got 3'),
        ((*classifier, '--batch-size', 4, '--passes', 0), '--passes starts at 1, got 0'),
        ((*segmentor, '--batch-size', 5), 'the test split has 4 images to use, a batch has 5'),
        (
            (*segmentor, '--batch-size', 4, '--size', 60, 64),
            'height and width are multiples of 32, got 60 and 64',
        ),
        (
            (*segmentor, '--batch-size', 4, *compared, '--layers', 'blocks.*'),
            'it has downsample_layers, stages',
        ),
        ((*plain, '--batch-size', 4), 'ConvNeXt has no columns; give it to --plain'),
    ):
        _, error = call_tool(*arguments)
        assert error.startswith('error: ') and message in error
