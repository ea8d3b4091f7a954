"""Feature maps in colours: what the colours mean, and tools/analysis/feature_maps.py."""

import json
import runpy
import sys

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip('sklearn')
from sklearn.decomposition import PCA

from revcol_mm import RevCol
from revcol_mm.analysis.feature_maps import feature_maps, principal_colours
from revcol_mm.apis import init_model

from .subprocesses import REPO


@pytest.fixture
def backbone():
    return RevCol(arch='nano', layer_scale_init_value=1.0).eval()


def test_every_column_and_level_is_coloured_as_far_as_the_image_reaches(backbone):
    maps = feature_maps(backbone, torch.randn(1, 3, 96, 128), (70, 97))
    for level in zip(*maps.colours):
        assert np.min(level) == 0 and np.max(level) == 1
    assert maps.explained.shape == (4, 4) and maps.channels == (32, 64, 128, 256)
    for column in maps.colours:
        assert [level.shape for level in column] == [(18, 25, 3), (9, 13, 3), (5, 7, 3), (3, 4, 3)]


def test_padding_changes_no_colour_that_it_does_not_touch(backbone):
    """The first column's level 0 sees little around a pixel."""
    image = torch.randn(1, 3, 64, 64)
    padded = torch.nn.functional.pad(image, (0, 64, 0, 32))
    plain, cut = (feature_maps(backbone, x, (64, 64), 'map').colours[0][0] for x in (image, padded))
    assert np.abs(plain - cut)[:12, :12].max() < 0.1 < np.abs(plain - plain[::-1]).max()


def test_the_same_direction_has_the_same_colour_in_every_column_but_not_in_maps_alone(backbone):
    maps = [np.random.default_rng(seed).normal(size=(8, 6, 5)) for seed in range(2)]
    maps.append(7 * maps[0] - 3)  # another scale and mean
    (first, _), (other, _), (scaled, _) = principal_colours(maps)
    assert np.allclose(first, scaled) and not np.allclose(first, other)
    assert not np.allclose(principal_colours(maps[:1])[0][0], first)


def test_the_shares_of_variance_are_those_of_pca_and_none_is_larger(backbone):
    image = torch.randn(1, 3, 64, 64)
    alone, together = (feature_maps(backbone, image, (64, 64), fit) for fit in ('map', 'level'))
    with torch.no_grad():
        features = [levels[1][0].flatten(1).T.numpy() for levels in backbone.forward_columns(image)]
    expected = [PCA(3).fit(values).explained_variance_ratio_.sum() for values in features]
    assert alone.explained[:, 1] == pytest.approx(expected, abs=1e-4)
    assert (together.explained <= alone.explained + 1e-4).all()
    assert (together.explained < alone.explained - 1e-4).any()


def test_maps_of_one_value_and_of_few_pixels_are_coloured(backbone):
    constant, varied = principal_colours(
        [np.full((5, 2, 2), 3.0), np.random.default_rng(0).normal(size=(5, 1, 2))]
    )
    assert np.isnan(constant[1]) and np.ptp(constant[0], axis=(0, 1)).max() == 0
    assert varied[1] == pytest.approx(1)  # two pixels differ in one direction
    maps = feature_maps(backbone, torch.randn(1, 3, 32, 32), (32, 32))
    assert np.isnan(maps.explained[:, 3]).all() and not np.isnan(maps.explained[:, :3]).any()


def test_another_fit_is_refused(backbone):
    with pytest.raises(ValueError, match="fit is level or map, got 'image'"):
        feature_maps(backbone, torch.randn(1, 3, 32, 32), (32, 32), 'image')


@pytest.fixture(scope='module')
def checkpoints(tmp_path_factory):
    folder = tmp_path_factory.mktemp('checkpoints')
    for name in ('upernet_revcol_nano_sample', 'baselines/upernet_convnext_sample'):
        model = init_model(REPO / f'configs/{name}.py', device='cpu')
        torch.save(model.state_dict(), folder / f'{model.backbone.__class__.__name__}.pth')
    return folder


@pytest.fixture
def tool(monkeypatch, capfd):
    """Run the tool in this process: arguments -> (exit status, what it printed)."""
    main = runpy.run_path(str(REPO / 'tools/analysis/feature_maps.py'))['main']

    def call(*arguments):
        monkeypatch.setattr(sys, 'argv', ['feature_maps.py', *map(str, arguments)])
        try:
            main()
        except SystemExit as error:
            return error.code, ''.join(capfd.readouterr())
        return 0, ''.join(capfd.readouterr())

    return call


def test_the_tool_prints_and_writes_shares_and_draws_a_figure_of_every_image(
    tool, checkpoints, sample_data, tmp_path, device
):
    config, out = REPO / 'configs/upernet_revcol_nano_sample.py', tmp_path / 'out'
    images = sorted((sample_data / 'ade20k/images/validation').iterdir())[:2]
    (tmp_path / 'broken.jpg').write_text('no image')
    inputs = (*images, tmp_path / 'broken.jpg')
    status, printed = tool(config, checkpoints / 'RevCol.pth', *inputs, '--out', out, '--device', device)
    assert status == 65 and f'{tmp_path / "broken.jpg"}: not an image' in printed
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
    'config, checkpoint, image, message',
    [
        (
            'baselines/upernet_convnext_sample',
            'ConvNeXt',
            'scene.jpg',
            'the backbone of the model has no columns: it is a',
        ),
        ('upernet_revcol_nano_sample', 'RevCol', 'clip.mp4', 'feature maps are of images, not of videos'),
        ('upernet_revcol_nano_sample', 'RevCol', 'nothing.jpg', 'no file, folder or match of'),
    ],
)
def test_what_has_no_columns_and_what_is_no_image_are_errors(
    config, checkpoint, image, message, tool, checkpoints, tmp_path
):
    (tmp_path / 'clip.mp4').touch()
    Image.new('RGB', (64, 64)).save(tmp_path / 'scene.jpg')
    status, _ = tool(REPO / f'configs/{config}.py', checkpoints / f'{checkpoint}.pth', tmp_path / image)
    assert status.startswith(f'error: {message}')
