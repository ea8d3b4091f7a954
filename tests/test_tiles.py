"""Tiles of large images, and merging their predictions."""

import itertools
import json

import numpy as np
import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData, PixelData
from mmseg.structures import SegDataSample
from PIL import Image
from pycocotools import mask as coco_mask
from skimage import data

from revcol_mm.apis import init_inferencer
from revcol_mm.apis.inferencer import MAX_PICTURE, _scaled_down
from revcol_mm.apis.tile_mergers import DetectionMerger, LabelMerger, encode_mask
from revcol_mm.apis.tiles import Tiling

from .random_checkpoint import random_checkpoint
from .subprocesses import REPO

SEGMENTOR = REPO / 'configs/upernet_revcol_nano_sample.py'
DETECTOR = REPO / 'configs/cascade_mask_rcnn_revcol_nano_sample.py'


@pytest.mark.parametrize(
    'size, overlap, height, width', [(32, 8, 100, 77), (32, 16, 33, 20), (50, 0, 200, 50)]
)
def test_tiles_cover_an_image_and_overlap(size, overlap, height, width):
    seen, own = np.zeros((height, width), int), np.zeros((height, width), int)
    tiles = [*Tiling(size, overlap).tiles(height, width)]
    for rows, columns in tiles:
        seen[rows.start : rows.stop, columns.start : columns.stop] += 1
        own[rows.first : rows.last, columns.first : columns.last] += 1
        assert (rows.stop - rows.start, columns.stop - columns.start) == (min(size, height), min(size, width))
    assert seen.min() == 1 and (own == 1).all()
    spans = sorted({tile.rows for tile in tiles})
    for before, after in itertools.pairwise(spans):
        assert before.stop - after.start >= overlap
        assert before.stop - before.last >= overlap // 2 and after.first - after.start >= overlap // 2


@pytest.mark.parametrize('size, overlap', [(0, 0), (10, 6), (10, -1)])
def test_impossible_tiling_is_an_error(size, overlap):
    with pytest.raises(ValueError, match=f'got {size} and {overlap}'):
        Tiling(size, overlap)


def test_labels_are_merged_from_the_tile_whose_border_is_furthest():
    labels = np.random.default_rng(0).integers(0, 9, (70, 91)).astype(np.int16)
    parts = []
    for tile in Tiling(32, 12).tiles(*labels.shape):
        left, top, right, bottom = tile.box
        part = labels[top:bottom, left:right].copy()
        if left:
            part[:, :6] = 99  # nearer to this tile's border than to the neighbour's
        parts.append((tile, part))
    merged = LabelMerger().merge(parts, *labels.shape).pred_sem_seg.data[0]
    assert np.array_equal(merged.numpy(), labels)


@pytest.mark.parametrize('shape', [(5, 7), (1, 1), (6, 3)])
def test_tile_mask_is_encoded_in_the_image(shape):
    random = np.random.default_rng(1)
    for share in (0.0, 0.5, 1.0):
        mask = random.random(shape) < share
        whole = np.zeros((9, 8), np.uint8)
        whole[2 : 2 + shape[0], 1 : 1 + shape[1]] = mask
        rle = encode_mask(mask, 1, 2, 9, 8)
        assert np.array_equal(coco_mask.decode(rle), whole)
        assert rle == coco_mask.encode(np.asfortranarray(whole))


def seen_by(tile, objects, height, width):
    """Return what a perfect detector finds in a tile of objects (x1, y1, x2, y2, label)."""
    left, top, right, bottom = tile.box
    found = []
    for number, (x1, y1, x2, y2, label) in enumerate(objects):
        box = max(x1, left), max(y1, top), min(x2, right), min(y2, bottom)
        if box[0] < box[2] and box[1] < box[3]:
            found.append(
                ([box[0] - left, box[1] - top, box[2] - left, box[3] - top], 0.9 - number / 100, label)
            )
    masks = torch.zeros(len(found), bottom - top, right - left, dtype=torch.bool)
    for mask, ((x1, y1, x2, y2), *_) in zip(masks, found):
        mask[y1:y2, x1:x2] = True
    instances = InstanceData(
        bboxes=torch.tensor([box for box, *_ in found]).float().reshape(-1, 4),
        scores=torch.tensor([score for _, score, _ in found]),
        labels=torch.tensor([label for *_, label in found], dtype=torch.long),
        masks=masks,
    )
    return DetectionMerger().part(DetDataSample(pred_instances=instances), tile, height, width)


def merge(parts, height, width):
    return DetectionMerger().merge(parts, height, width).pred_instances


def test_cut_objects_are_joined_and_others_are_not():
    objects = [
        (50, 40, 80, 60, 0),  # crosses borders of tiles
        (52, 42, 70, 58, 1),  # inside the first, of another class
        (5, 5, 25, 20, 0),  # within one tile
        (8, 8, 12, 12, 0),  # inside the third
        (10, 100, 140, 110, 2),  # longer than a tile
        (120, 100, 128, 124, 2),  # overlaps the fifth
    ]
    height, width = 130, 150
    tiles = [*Tiling(64, 24).tiles(height, width)]
    assert len(tiles) > 9
    merged = merge([(tile, seen_by(tile, objects, height, width)) for tile in tiles], height, width)
    assert len(merged) == len(objects)
    for (*box, label), found, number, rle in zip(
        objects, merged.bboxes.tolist(), merged.labels.tolist(), merged.rles
    ):
        assert (found, number) == (box, label)
        mask = np.zeros((height, width), np.uint8)
        mask[box[1] : box[3], box[0] : box[2]] = 1
        assert np.array_equal(coco_mask.decode(rle), mask)
    assert merged.scores.tolist() == pytest.approx([0.9 - number / 100 for number in range(len(objects))])


def test_cut_box_that_a_better_tile_does_not_find_is_dropped():
    """It is kept if no tile sees more of it, or the border of the image cuts it."""
    left, right = Tiling(64, 24).tiles(64, 104)
    objects = [(50, 10, 64, 20, 0), (0, 30, 20, 40, 0), (30, 40, 64, 50, 0)]
    parts = [(left, seen_by(left, objects, 64, 104)), (right, seen_by(right, [], 64, 104))]
    merged = merge(parts, 64, 104)
    assert merged.bboxes.tolist() == [[0, 30, 20, 40], [30, 40, 64, 50]]


def test_no_detections_in_any_tile():
    tiles = [*Tiling(64, 24).tiles(100, 100)]
    merged = merge([(tile, seen_by(tile, [], 100, 100)) for tile in tiles], 100, 100)
    assert len(merged) == 0 and merged.bboxes.shape == (0, 4)


class Pixelwise:
    """Fake segmentor whose prediction for a pixel is its brightness, and so independent of the tile."""

    def test_step(self, data):
        labels = [torch.from_numpy(image[None, ..., 0] // 32) for image in data]
        return [SegDataSample(pred_sem_seg=PixelData(data=each)) for each in labels]


def test_segmentation_in_tiles_equals_the_whole_image(monkeypatch):
    inferencer = init_inferencer(SEGMENTOR, device='cpu', tile=64, overlap=16)
    monkeypatch.setattr(inferencer, 'model', Pixelwise())
    monkeypatch.setattr(inferencer, '_preprocess', lambda images: images)
    images = [data.astronaut()[:200, :300], data.astronaut()[200:400, 100:400]]
    for image, sample in zip(images, inferencer.predict(images), strict=True):
        assert np.array_equal(inferencer.labels(sample), image[..., 0] // 32)
    with pytest.raises(ValueError, match='of one size'):
        inferencer.predict([images[0], images[1][:100]])


@pytest.mark.parametrize('config', [SEGMENTOR, DETECTOR], ids=['segmentor', 'detector'])
def test_prediction_in_one_tile_equals_the_whole_image(config):
    image = data.astronaut()[:120, :100]
    whole = init_inferencer(config, device='cpu')
    tiled = init_inferencer(config, device='cpu', tile=128)
    tiled.model.load_state_dict(whole.model.state_dict())
    for each in (whole, tiled):
        if hasattr(each, 'score_threshold'):
            each.score_threshold = 0.05
    (expected,), (found,) = whole.predict([image]), tiled.predict([image])
    ours, theirs = tiled.records(found), whole.records(expected)
    assert [record['label'] for record in ours] == [record['label'] for record in theirs]
    assert [record.get('segmentation') for record in ours] == [
        record.get('segmentation') for record in theirs
    ]
    (picture,), (other,) = tiled.draw([image], [found]), whole.draw([image], [expected])
    assert picture.shape == other.shape


def test_predict_command_in_tiles(tmp_path, call_tool, monkeypatch):
    monkeypatch.setattr('revcol_mm.apis.inferencer.MAX_PICTURE', 300)
    Image.fromarray(data.astronaut()[:400, :500]).save(tmp_path / 'large.png')
    for config, name in ((SEGMENTOR, 'labels/large.png'), (DETECTOR, 'predictions.json')):
        options = '--config', config, '--checkpoint', random_checkpoint(config), '--out', tmp_path / 'out'
        options += '--tile', 192, '--overlap', 32, '--device', 'cpu'
        printed, error = call_tool('tools/demo.py', tmp_path / 'large.png', *options)
        assert not error and '1 of 1' in printed
        assert (tmp_path / 'out' / name).exists()
        assert Image.open(tmp_path / 'out/overlays/large.png').size == (300, 240)
    assert Image.open(tmp_path / 'out/labels/large.png').size == (500, 400)
    for record in json.loads((tmp_path / 'out/predictions.json').read_text()):
        assert record['segmentation']['size'] == [400, 500]


def test_picture_of_a_thin_image_is_one_pixel_high():
    assert _scaled_down(np.zeros((1, 5 * MAX_PICTURE, 3), np.uint8)).shape == (1, MAX_PICTURE, 3)


@pytest.mark.parametrize(
    'config, options, message',
    [
        (
            'revcol_nano_sample',
            dict(tile=64),
            'tiles are only for detection and semantic segmentation, not for class',
        ),
        ('mask2former_revcol_nano_panoptic_sample', dict(tile=64), 'tiles are only for .*, not for panoptic'),
        ('upernet_revcol_nano_sample', dict(overlap=8), 'an overlap needs a tile size'),
        ('upernet_revcol_nano_sample', dict(tile=64, overlap=40), 'got 64 and 40'),
        ('upernet_revcol_nano_sample', dict(tile=-1), 'got -1 and'),
        ('upernet_revcol_nano_sample', dict(tile=0), 'got 0 and'),
    ],
)
def test_tiles_that_a_task_does_not_have_are_an_error(config, options, message):
    with pytest.raises(ValueError, match=message):
        init_inferencer(REPO / f'configs/{config}.py', device='cpu', **options)
