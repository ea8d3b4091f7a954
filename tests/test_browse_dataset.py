"""tools/analysis/browse_dataset.py, which draws images of a data set with their ground truth."""

import json

import cv2
import numpy as np
import pytest
from PIL import Image

from .subprocesses import REPO

TOOL = 'tools/analysis/browse_dataset.py'
SEGMENTATION = 'configs/upernet_revcol_nano_sample.py'
DETECTION = 'configs/dino_revcol_nano_sample.py'
CLASSIFICATION = 'configs/revcol_nano_sample.py'


@pytest.fixture
def browse(sample_data, tmp_path, call_tool):
    """Run the tool on the sample data; return its output, and the row and the pixels of every picture."""

    def run(config, layout, split, *arguments):
        root = f'{split}_dataloader.dataset.data_root={sample_data / layout}'
        printed, error = call_tool(
            TOOL, config, '--split', split, '--out', tmp_path, '--cfg-options', root, *arguments
        )
        assert not error
        rows = json.loads((tmp_path / 'browse_dataset.json').read_text())
        return printed, [(row, np.asarray(Image.open(tmp_path / row['picture'])).astype(int)) for row in rows]

    return run


@pytest.mark.slow
def test_boxes_are_drawn_around_the_resized_objects(browse, sample_data):
    coco = json.loads((sample_data / 'coco/annotations/instances_val2017.json').read_text())
    images = {image['file_name']: image for image in coco['images']}
    printed, pictures = browse(DETECTION, 'coco', 'test')
    assert len(pictures) == len(images) == 4
    for row, picture in pictures:
        name = row['source'].split('/')[-1]
        info = images[name]
        objects = [a for a in coco['annotations'] if a['image_id'] == info['id']]
        assert sum(row['holds'].values()) == len(objects)
        assert set(row['holds']) == {str(a['category_id'] - 1) for a in objects}
        height, width = row['size']
        factor = round(640 / max(height, width))  # small pictures are enlarged
        assert min(height, width) == 128 and picture.shape == (factor * height, factor * width, 3)
        assert f'| {row["picture"]} | {height} x {width} | {row["description"]} |' in printed
        plain = Image.open(sample_data / 'coco/val2017' / name).resize(
            (width, height), Image.Resampling.BILINEAR
        )
        plain = cv2.resize(np.asarray(plain), None, fx=factor, fy=factor, interpolation=cv2.INTER_CUBIC)
        plain = plain.astype(int)
        changed = np.abs(picture - plain).max(2) > 60
        near, frames = np.zeros_like(changed), 0
        for a in objects:
            x, y, w, h = np.array(a['bbox']) * factor * width / info['width']
            near[max(0, int(y) - 8) : int(y + h) + 8, max(0, int(x) - 8) : int(x + w) + 8] = True
            frames += 2 * (w + h)
        assert changed[near].sum() > frames / 2
        assert changed[~near].sum() < 0.02 * (~near).sum()  # interpolation differs at edges


def test_shares_of_segments_are_those_of_the_label_files(browse, sample_data):
    _, pictures = browse(SEGMENTATION, 'ade20k', 'test')
    for row, _ in pictures:
        labels = np.asarray(Image.open(sample_data / f'ade20k/annotations/validation/{row["picture"][12:]}'))
        shares = np.bincount(labels.ravel(), minlength=12) / labels.size
        for label, name in enumerate(('background', *'0123456789')):
            assert row['holds'].get(name, 0) == pytest.approx(shares[label + 1], abs=0.01)
        assert sum(row['holds'].values()) < 1  # some pixels have no label


def test_classification_pictures_have_the_colours_of_the_file(browse):
    _, pictures = browse(CLASSIFICATION, 'imagenet', 'test', '--number', 6)
    assert len(pictures) == 6
    for row, picture in pictures:
        assert list(row['holds']) == [row['source'].split('/')[-2]] == [row['description']]
        assert row['size'] == [64, 64] and picture.shape == (640, 640, 3)
        original = np.asarray(Image.open(row['source']).convert('RGB').resize((640, 640)))
        assert np.abs(picture[150:] - original[150:]).mean() < 12  # red and blue are not exchanged


def test_augmentation_depends_on_the_seed(browse):
    (_, first), (_, again), (_, other) = (
        browse(SEGMENTATION, 'ade20k', 'train', '--number', 3, '--seed', seed) for seed in (0, 0, 1)
    )
    assert [row['source'] for row, _ in first] == [row['source'] for row, _ in other]
    assert all(np.array_equal(a, b) for (_, a), (_, b) in zip(first, again))
    assert any(not np.array_equal(a, b) for (_, a), (_, b) in zip(first, other))
    assert max(max(row['size']) for row, _ in first) <= 128  # the crop


@pytest.mark.parametrize(
    'arguments, message',
    [
        (('--number', 0), '--number must be at least 1, got 0'),
        (('--cfg-options', 'train_dataloader.dataset.data_root=nowhere'), 'no data folder nowhere'),
        (('--cfg-options', 'visualizer=None'), 'lacks train_dataloader or visualizer'),
        (('--out', REPO / 'README.md/out'), 'cannot write in'),
    ],
)
def test_invalid_input_is_an_error_in_one_line(arguments, message, call_tool):
    _, error = call_tool(TOOL, SEGMENTATION, *arguments)
    assert error.startswith('error: ') and message in error
