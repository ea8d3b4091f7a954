"""Feature maps with principal components as colours, and tools/analysis/feature_maps.py."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip('sklearn')
from sklearn.decomposition import PCA

from revcol_mm import RevCol
from revcol_mm.analysis.feature_maps import column_backbone, feature_maps, principal_colours
from revcol_mm.models import ReversibleColumns

from .random_checkpoint import PLAIN_SEGMENTOR, SEGMENTOR, random_checkpoint
from .subprocesses import run
from .test_reversible_columns import build

TOOL = 'tools/analysis/feature_maps.py'


@pytest.fixture
def backbone():
    return RevCol(arch='nano', layer_scale_init_value=1.0).eval()


def test_every_map_is_coloured_without_padding(backbone):
    maps = feature_maps(backbone, torch.randn(1, 3, 96, 128), (70, 97))
    for level in zip(*maps.colours):
        assert np.min(level) == 0 and np.max(level) == 1
    assert maps.explained.shape == (4, 4) and maps.channels == (32, 64, 128, 256)
    for column in maps.colours:
        assert [level.shape for level in column] == [(18, 25, 3), (9, 13, 3), (5, 7, 3), (3, 4, 3)]


@pytest.mark.parametrize('name', ['ResNet', 'Swin'])
def test_columns_of_other_networks_are_drawn(name):
    columns = ReversibleColumns(build(name), num_columns=2).eval()
    maps = feature_maps(columns, torch.randn(1, 3, 64, 96), (64, 96))
    for column in maps.colours:
        assert [level.shape for level in column] == [(16, 24, 3), (8, 12, 3), (4, 6, 3), (2, 3, 3)]
    assert len(maps.colours) == 2


def test_maps_are_cropped_by_the_strides_of_the_backbone(backbone):
    backbone.strides = (8, 8, 8, 32)
    maps = feature_maps(backbone, torch.randn(1, 3, 64, 64), (32, 48))
    assert [level.shape for level in maps.colours[0]] == [(4, 6, 3), (4, 6, 3), (4, 4, 3), (1, 2, 3)]


def test_exported_model_is_an_error():
    with pytest.raises(ValueError, match='exported file has no backbone .*: give the checkpoint'):
        column_backbone(SimpleNamespace())


def test_padding_does_not_change_distant_colours(backbone):
    """The receptive field of the first column's level 0 is small."""
    image = torch.randn(1, 3, 64, 64)
    padded = torch.nn.functional.pad(image, (0, 64, 0, 32))
    plain, cropped = (feature_maps(backbone, x, (64, 64), 'map').colours[0][0] for x in (image, padded))
    assert np.abs(plain - cropped)[:12, :12].max() < 0.1 < np.abs(plain - plain[::-1]).max()


def test_common_components_give_maps_of_any_scale_the_same_colours():
    maps = [np.random.default_rng(seed).normal(size=(8, 6, 5)) for seed in range(2)]
    maps.append(7 * maps[0] - 3)
    (first, _), (other, _), (scaled, _) = principal_colours(maps)
    assert np.allclose(first, scaled) and not np.allclose(first, other)
    assert not np.allclose(principal_colours(maps[:1])[0][0], first)


def test_explained_variance_is_that_of_pca(backbone):
    image = torch.randn(1, 3, 64, 64)
    alone, together = (feature_maps(backbone, image, (64, 64), fit) for fit in ('map', 'level'))
    with torch.no_grad():
        features = [levels[1][0].flatten(1).T.numpy() for levels in backbone.forward_columns(image)]
    expected = [PCA(3).fit(values).explained_variance_ratio_.sum() for values in features]
    assert alone.explained[:, 1] == pytest.approx(expected, abs=1e-4)
    assert (together.explained <= alone.explained + 1e-4).all()
    assert (together.explained < alone.explained - 1e-4).any()


def test_constant_maps_and_maps_of_few_pixels_are_coloured(backbone):
    constant, varied = principal_colours(
        [np.full((5, 2, 2), 3.0), np.random.default_rng(0).normal(size=(5, 1, 2))]
    )
    assert np.isnan(constant[1]) and np.ptp(constant[0], axis=(0, 1)).max() == 0
    assert varied[1] == pytest.approx(1)  # two pixels differ in one direction only
    maps = feature_maps(backbone, torch.randn(1, 3, 32, 32), (32, 32))
    assert np.isnan(maps.explained[:, 3]).all() and not np.isnan(maps.explained[:, :3]).any()


def test_invalid_fit_is_an_error(backbone):
    with pytest.raises(ValueError, match="fit must be level or map, got 'image'"):
        feature_maps(backbone, torch.randn(1, 3, 32, 32), (32, 32), 'image')


def test_tool_reports_and_draws_every_readable_image(sample_data, tmp_path, device):
    out = tmp_path / 'out'
    images = sorted((sample_data / 'ade20k/images/validation').iterdir())[:2]
    (tmp_path / 'broken.jpg').write_text('no image')
    arguments = random_checkpoint(SEGMENTOR), *images, tmp_path / 'broken.jpg', '--out', out
    printed = run(TOOL, SEGMENTOR, *arguments, '--device', device, expect=65)
    assert f'{tmp_path / "broken.jpg"}: not an image' in printed
    report = json.loads((out / 'feature_maps.json').read_text())
    assert report['fit'] == 'level'
    for image, row in zip(images, report['images'], strict=True):
        assert row['file_name'].endswith(image.name)
        for column, shares in enumerate(row['explained_variance']):
            assert f'| {column} | {" | ".join(f"{100 * share:.1f}" for share in shares)} |' in printed
        (figure,) = out.rglob(f'{image.stem}.png')
        figure = np.asarray(Image.open(figure).convert('RGB'))
        assert min(figure.shape[:2]) > 300 and len(np.unique(figure.reshape(-1, 3), axis=0)) > 500


@pytest.mark.parametrize(
    'config, image, message',
    [
        (PLAIN_SEGMENTOR, 'scene.jpg', 'the backbone of the model has no columns: it is a'),
        (SEGMENTOR, 'clip.mp4', 'feature maps can be drawn of images only, not of videos'),
        (SEGMENTOR, 'nothing.jpg', 'no file, folder or match of'),
    ],
)
def test_invalid_input_is_an_error_in_one_line(config, image, message, call_tool, tmp_path):
    (tmp_path / 'clip.mp4').touch()
    Image.new('RGB', (64, 64)).save(tmp_path / 'scene.jpg')
    _, error = call_tool(TOOL, config, random_checkpoint(config), tmp_path / image)
    assert error.startswith(f'error: {message}')
