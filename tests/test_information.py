"""Linear probes of images and labels, and tools/analysis/information.py."""

import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from revcol_mm.analysis.information import Probes, columns_of, psnr
from revcol_mm.analysis.labelled_images import UNLABELLED, Batch, LabelledImages
from revcol_mm.analysis.linear_probe import Moments, fit_discriminant, fit_ridge, predict

from .random_checkpoint import (
    CLASSIFIER,
    PLAIN_SEGMENTOR,
    SEGMENTOR,
    config_on,
    data_options,
    random_checkpoint,
)
from .subprocesses import REPO

TOOL = 'tools/analysis/information.py'


def moments_of(x, y, *sizes):
    moments = Moments()
    for a, b in zip(x.split(sizes or len(x)), y.split(sizes or len(y))):
        moments.add(a, b)
    return moments


def regression(count, noise=0.0):
    x = torch.randn(count, 6, dtype=torch.float64) @ torch.randn(6, 6, dtype=torch.float64) + 10
    y = x @ torch.linspace(-1, 1, 18, dtype=torch.float64).view(6, 3) + 4
    return x, y + noise * torch.randn(count, 3, dtype=torch.float64)


def reference_ridge(x, y, ridge):
    """scikit-learn's ridge regression, whose penalty is not relative to samples and variance."""
    linear_model = pytest.importorskip('sklearn.linear_model')
    alpha = ridge * len(x) * x.var(0, unbiased=False).mean().item()
    return linear_model.Ridge(alpha).fit(x.numpy(), y.numpy())


def test_ridge_regression_equals_scikit_learn_for_any_batches():
    x, y = regression(90, noise=1.0)
    weights, _ = fit_ridge(moments_of(x[:60], y[:60], 7, 50, 3), moments_of(x[60:], y[60:]), ridges=[0.1])
    expected = reference_ridge(x, y, 0.1)
    np.testing.assert_allclose(weights[:-1].numpy(), expected.coef_.T, rtol=1e-9)
    np.testing.assert_allclose(weights[-1].numpy(), expected.intercept_, rtol=1e-9)
    np.testing.assert_allclose(predict(weights, x).numpy(), expected.predict(x.numpy()), rtol=1e-9)
    order = torch.randperm(60)
    again, _ = fit_ridge(moments_of(x[order], y[order]), moments_of(x[60:], y[60:]), ridges=[0.1])
    torch.testing.assert_close(again, weights, rtol=1e-9, atol=1e-12)


def test_ridge_minimises_the_error_on_validation_samples():
    x, y = regression(12, noise=20.0)
    held_x, held_y = regression(500, noise=20.0)
    ridges = (1e-6, 1e-2, 1.0, 100.0)
    errors = [
        np.square(reference_ridge(x, y, ridge).predict(held_x.numpy()) - held_y.numpy()).sum()
        for ridge in ridges
    ]
    _, chosen = fit_ridge(moments_of(x, y), moments_of(held_x, held_y), ridges)
    assert chosen == ridges[np.argmin(errors)] and np.ptp(errors) > 0.01 * min(errors)


def test_linear_targets_are_recovered_exactly():
    x, y = regression(50)
    weights, _ = fit_ridge(moments_of(x[:40], y[:40]), moments_of(x[40:], y[40:]))
    torch.testing.assert_close(predict(weights, x), y, rtol=0, atol=1e-4)


def test_constant_features_predict_the_mean():
    y = torch.randn(20, 2, dtype=torch.float64)
    moments = moments_of(torch.zeros(20, 3), y)
    weights, _ = fit_ridge(moments, moments)
    torch.testing.assert_close(predict(weights, torch.ones(1, 3)), y.mean(0, keepdim=True))


def classes_of(count):
    labels = torch.multinomial(torch.tensor([0.9, 0.06, 0.04]), count, replacement=True)
    centres = torch.tensor([[0.0, 0, 0], [3, 0, 0], [1.5, 0.3, 0]]).double()
    return centres[labels] + torch.randn(count, 3).double() @ torch.randn(3, 3).double(), labels


def test_linear_discriminants_equal_scikit_learn():
    discriminant_analysis = pytest.importorskip('sklearn.discriminant_analysis')
    x, labels = classes_of(3000)
    one_hot = F.one_hot(labels, 3)
    weights, _ = fit_discriminant(
        moments_of(x[:2000], one_hot[:2000]), moments_of(x[2000:], one_hot[2000:]), ridges=[1e-12]
    )
    expected = discriminant_analysis.LinearDiscriminantAnalysis(solver='lsqr').fit(x.numpy(), labels.numpy())
    np.testing.assert_allclose(
        predict(weights, x).log_softmax(1).numpy(),
        expected.predict_log_proba(x.numpy()),
        rtol=1e-6,
        atol=1e-6,
    )


def test_classes_without_samples_are_never_predicted():
    x, labels = classes_of(500)
    moments = moments_of(x, F.one_hot(labels, 5))
    weights, _ = fit_discriminant(moments, moments)
    assert torch.equal(predict(weights, x)[:, 3:], torch.full((500, 2), -torch.inf).double())
    assert predict(weights, x).argmax(1).unique().tolist() == labels.unique().tolist()


class Network:
    """Level 0 contains the whole image; level 1 contains only its means over 8 x 8 pixels."""

    def __init__(self):
        self.mixing = torch.randn(48, 48, dtype=torch.float64)

    def data_preprocessor(self, data):
        return data

    def backbone(self, images):
        pixels = F.pixel_unshuffle(images.double(), 4)
        return [torch.einsum('dc,bchw->bdhw', self.mixing, pixels), F.avg_pool2d(images, 8).double()]


def test_probes_recover_what_features_contain():
    probes = Probes(Network(), num_classes=2)
    images = torch.rand(60, 3, 32, 32)
    labels = (images[:, 0, 2::4, 2::4] > 0.9).long()
    labels[:, 0] = UNLABELLED
    batches = [Batch(dict(inputs=x), x, y) for x, y in zip(images.split(20), labels.split(20))]
    for batch in batches[:2]:
        probes.train(batch, torch.arange(20) % 5 == 0)
    probes.fit()
    probes.test(batches[2])
    num_values = images[40:].numel()
    rows = {row['level']: row for row in probes.rows(num_values, 'network')}
    assert rows[0]['psnr'] > 100 and rows['all']['psnr'] > 100
    means = F.avg_pool2d(images[40:], 8).repeat_interleave(8, 2).repeat_interleave(8, 3)
    error = (means - images[40:]).square().sum().item()
    assert rows[1]['psnr'] == pytest.approx(psnr(error, num_values), abs=0.05)
    assert psnr(error, num_values) == pytest.approx(10.8, abs=0.1)  # uniform values have variance 1 / 12
    known = labels[40:][labels[40:] != UNLABELLED]
    assert probes.confusion['labels', 0, 0].sum() == known.numel()
    assert rows[0]['accuracy'] > 100 * max(known.float().mean(), 1 - known.float().mean()) + 3


def test_features_that_do_not_divide_the_image_are_an_error():
    images = torch.rand(2, 3, 30, 30)
    network = SimpleNamespace(data_preprocessor=lambda data: data, backbone=lambda x: [F.avg_pool2d(x, 4)])
    with pytest.raises(ValueError, match=r'\(2, 3, 7, 7\) do not divide images of 30 x 30 into cells'):
        list(columns_of(network, Batch(dict(inputs=images), images, torch.zeros(2))))


def test_tool_reports_columns_stages_and_trivial_predictions(sample_data, tmp_path, call_tool, device):
    data = data_options(sample_data, 'ade20k')
    printed, error = call_tool(
        *(TOOL, SEGMENTOR, random_checkpoint(SEGMENTOR)),
        *('--plain', PLAIN_SEGMENTOR, random_checkpoint(PLAIN_SEGMENTOR)),
        *('--device', device, '--size', 64, 64, '--out', tmp_path, *data),
    )
    assert not error
    report = json.loads((tmp_path / 'information.json').read_text())
    places = [(row['network'], row['column'], row['level']) for row in report['rows']]
    assert places == [
        *(('upernet_revcol_nano_sample', c, level) for c in range(4) for level in (0, 1, 2, 3, 'all')),
        *(('upernet_convnext_sample', 0, level) for level in (0, 1, 2, 3, 'all')),
    ]
    cfg = config_on(sample_data, SEGMENTOR, 'ade20k')
    training, test = (next(LabelledImages(cfg, split, 20, (64, 64)).batches()) for split in ('train', 'test'))
    assert len(training.images) == report['num_training_images'] == 12
    mse = np.square(test.images.numpy() - training.images.numpy().mean(0)).mean()
    labels = test.labels[test.labels != UNLABELLED]
    assert report['trivial']['psnr'] == pytest.approx(-10 * np.log10(mse), abs=1e-4)
    assert report['trivial']['accuracy'] == pytest.approx(100 * (labels == 0).float().mean().item())
    assert report['rows'][0]['psnr'] > report['trivial']['psnr'] + 3
    assert f'| {report["rows"][0]["psnr"]:.2f} |' in printed and '| trivial |' in printed
    assert (tmp_path / 'information.png').stat().st_size > 20_000


@pytest.mark.slow
def test_batch_size_does_not_matter_for_a_classifier(sample_data, tmp_path, call_tool, device):
    reports = []
    for batch_size in (3, 16):
        _, error = call_tool(
            *(TOOL, CLASSIFIER, random_checkpoint(CLASSIFIER), '--batch-size', batch_size),
            *('--device', device, '--num-images', 30, '--out', tmp_path),
            *data_options(sample_data, 'imagenet'),
        )
        assert not error
        reports.append(json.loads((tmp_path / 'information.json').read_text()))
    small, large = (report['rows'] for report in reports)
    assert [row['psnr'] for row in small] == pytest.approx([row['psnr'] for row in large], rel=1e-4)
    assert reports[0]['num_training_images'] == 30 and not reports[0]['dense']


@pytest.mark.parametrize(
    'options, layout, message',
    [
        (('--num-images', 1), 'imagenet', 'at least 2 training images'),
        (('--batch-size', 0), 'imagenet', 'must be at least 1, got 0'),
        (('--plain', CLASSIFIER, 'nothing.pth'), 'imagenet', 'has the same file name as CONFIG'),
        ((), 'nothing', 'no data folder {}/nothing'),
    ],
)
def test_invalid_input_is_an_error_in_one_line(options, layout, message, sample_data, call_tool):
    checkpoint = random_checkpoint(CLASSIFIER)
    options = [checkpoint if option == 'nothing.pth' else option for option in options]
    _, error = call_tool(TOOL, CLASSIFIER, checkpoint, *options, *data_options(sample_data, layout))
    assert error.startswith('error: ') and message.format(sample_data) in error


def test_missing_checkpoint_is_an_error_in_one_line(sample_data, call_tool):
    _, error = call_tool(TOOL, CLASSIFIER, 'nothing.pth', *data_options(sample_data, 'imagenet'))
    assert error.startswith('error: ') and 'nothing.pth' in error


def test_docs_quote_the_recorded_probes():
    report = json.loads((REPO / 'docs/trainings/camvid_information/information.json').read_text())
    rows = [row for row in report['rows'] if row['level'] == 'all']
    first, last, plain = rows[0], rows[-2], rows[-1]
    docs = ' '.join((REPO / 'docs/trainings.md').read_text().split())
    for sentence, name in (
        ('PSNR of {1:.2f} dB, those of the first column with {0:.2f} and all stages .* with {2:.2f}', 'psnr'),
        ("with {0:.1f} mIoU from the first and {1:.1f} from the last, ConvNeXt's with {2:.1f}", 'miou'),
    ):
        assert re.search(sentence.format(*(row[name] for row in (first, last, plain))), docs)
