"""Pictures of predictions beside the ground truth."""

import warnings

import matplotlib
import numpy as np
import pytest
import torch
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmdet.visualization import DetLocalVisualizer
from mmengine.structures import InstanceData, PixelData
from mmseg.structures import SegDataSample
from mmseg.visualization import SegLocalVisualizer

from revcol_mm.visualization.drawable_samples import enlarge, without_empty_segments
from revcol_mm.visualization.prediction_pictures import GAP, MAX_NAMES, draw_beside_truth
from revcol_mm.visualization.segmentation_visualizer import SegmentationVisualizer

CLASSES = ('background', 'Straße', 'cat', 'dog')
PALETTE = [(20, 20, 20), (230, 25, 75), (60, 180, 75), (0, 130, 200)]
IGNORED = 255
on_exact_canvas = pytest.mark.skipif(
    matplotlib.__version_info__ < (3, 11),
    reason="older matplotlib repeats a row and a column of an image's pixels",
)


def photograph(height, width):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def segmentation_visualizer(cls=SegmentationVisualizer, classes=CLASSES, palette=PALETTE, **options):
    visualizer = cls(**options)
    visualizer.dataset_meta = dict(classes=classes, palette=palette)
    return visualizer


def in_columns(labels, height, width):
    """Return a label map, (1, H, W), of vertical stripes of equal width."""
    return torch.tensor(labels).repeat_interleave(width // len(labels)).repeat(1, height, 1)


def segmentation(truth, prediction, height=480, width=640):
    sample = SegDataSample()
    for name, labels in (('gt_sem_seg', truth), ('pred_sem_seg', prediction)):
        if labels is not None:
            sample.set_data({name: PixelData(data=in_columns(labels, height, width))})
    return sample


def draw(sample, height=480, width=640, **options):
    """Return the picture, and its parts: truth, prediction, their captions, and the legend."""
    picture = draw_beside_truth(
        segmentation_visualizer(**options), photograph(height, width), sample, with_labels=False
    )
    top = (picture[:, 0] == 255).all(-1).argmin()
    halves = picture[top : top + height]
    return dict(
        picture=picture,
        truth=halves[:, :width],
        prediction=halves[:, -width:],
        captions=(picture[:top, :width], picture[:top, -width:]),
        legend=picture[top + height :],
    )


def colours(picture):
    """Return the colours of the palette that occur in a picture."""
    return [colour for colour in PALETTE if (picture == colour).all(-1).any()]


def drawn_alone(visualizer, image, labels, **options):
    sample = SegDataSample(pred_sem_seg=PixelData(data=labels))
    visualizer.add_datasample('', image, sample, draw_gt=False, **options)
    return visualizer.get_image()


@on_exact_canvas
@pytest.mark.parametrize('brightness', [0, 128, 255])
def test_background_pixels_stay_those_of_the_image(brightness):
    image = photograph(60, 80) // 4 + np.uint8(brightness * 3 // 4)
    labels = in_columns((0, 2, IGNORED, 0), 60, 80)
    drawn = drawn_alone(segmentation_visualizer(), image, labels, with_labels=False)
    background = (labels == 0)[0].numpy()
    assert np.array_equal(drawn[background], image[background])
    library = segmentation_visualizer(SegLocalVisualizer)
    assert np.array_equal(
        drawn[~background], drawn_alone(library, image, labels, with_labels=False)[~background]
    )


def test_class_names_are_drawn_over_the_background_which_has_no_name():
    image, labels = photograph(400, 400), in_columns((0, 0, 0, 2), 400, 400)
    other = dict(classes=('other', *CLASSES[1:]), unpainted=('other',))
    plain, named, renamed = (
        drawn_alone(segmentation_visualizer(**options), image, labels, with_labels=written)
        for options, written in (({}, False), ({}, True), (other, True))
    )
    assert np.array_equal(named, renamed)
    assert not np.array_equal(named, plain)
    labels[:, :, 190:194] = 1  # narrower than its name
    plain, named = (
        drawn_alone(segmentation_visualizer(), image, labels, with_labels=written)
        for written in (False, True)
    )
    assert (plain != named).any(-1)[:, 194:260].any()


@on_exact_canvas
def test_unpainted_names_the_background_classes():
    image, labels = photograph(60, 80), in_columns((0, 1, 2, 3), 60, 80)
    for unpainted in ((), ('cat', 'dog')):
        drawn = drawn_alone(segmentation_visualizer(unpainted=unpainted), image, labels, with_labels=False)
        for label, name in enumerate(CLASSES):
            pixels = (labels == label)[0].numpy()
            assert np.array_equal(drawn[pixels], image[pixels]) == (name in unpainted)


@on_exact_canvas
def test_halves_are_drawn_by_the_visualizer_below_captions():
    sample = segmentation((0, 1), (2, 0))
    both, truth, prediction = (
        draw(s) for s in (sample, segmentation((0, 1), None), segmentation(None, (2, 0)))
    )
    image = photograph(480, 640)
    for name, field in (('truth', sample.gt_sem_seg), ('prediction', sample.pred_sem_seg)):
        expected = drawn_alone(segmentation_visualizer(), image, field.data, with_labels=False)
        assert np.array_equal(both[name], expected)
    assert both['picture'].shape[1] == 2 * 640 + GAP and truth['picture'].shape[1] == 640
    captions = both['captions']
    assert all((caption < 100).any() for caption in captions)
    assert np.array_equal(captions[0], truth['captions'][0])
    assert (
        np.abs(captions[1].astype(int) - prediction['captions'][0]).mean() < 1
    )  # shifted by a fraction of a pixel
    assert not np.array_equal(*captions)


@on_exact_canvas
def test_legend_has_colours_and_names_of_the_classes_in_the_picture():
    sample = segmentation((0, 1, IGNORED, 1), (0, 0, 3, 3))
    legend = draw(sample)['legend']
    assert colours(legend) == [PALETTE[1], PALETTE[3]]
    assert np.array_equal(legend, draw(sample, classes=('background', 'Straße', 'mat', 'dog'))['legend'])
    assert not np.array_equal(legend, draw(sample, classes=('background', 'Strasse', 'cat', 'dog'))['legend'])
    assert colours(draw(sample, unpainted=())['legend']) == [PALETTE[0], PALETTE[1], PALETTE[3]]
    for labels in ((0, 0), (IGNORED, IGNORED)):
        assert draw(segmentation(labels, labels))['legend'].size == 0


def test_legend_is_limited_to_the_most_common_classes():
    num_classes = MAX_NAMES + 20
    classes = tuple(f'a rather long name {i}' for i in range(num_classes))
    palette = [(i, 255 - i, 7) for i in range(num_classes)]
    labels = (*range(num_classes), *range(19, num_classes))  # the first 19 are rarer
    sample = segmentation(labels, labels, width=2 * len(labels) * 4)
    drawn = draw(sample, width=2 * len(labels) * 4, classes=classes, palette=palette)
    listed = [i for i in range(num_classes) if (drawn['legend'] == palette[i]).all(-1).any()]
    assert len(listed) == MAX_NAMES and set(listed) <= set(range(19, num_classes))


@pytest.mark.parametrize('size', [(1, 1), (3, 700), (700, 3), (150, 220), (500, 333)])
def test_images_of_any_size_can_be_drawn(size):
    labels = torch.ones(1, *size, dtype=torch.long)
    sample = SegDataSample(gt_sem_seg=PixelData(data=labels), pred_sem_seg=PixelData(data=labels + 1))
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        picture = draw_beside_truth(segmentation_visualizer(), photograph(*size), sample, with_labels=False)
    assert picture.dtype == np.uint8 and set(colours(picture)) >= {PALETTE[1], PALETTE[2]}


def test_small_images_are_enlarged_with_labels_boxes_and_masks():
    masks = np.zeros((1, 120, 200), np.uint8)
    masks[0, 10:30, 20:40] = 1
    boxes = torch.tensor([[20.0, 10, 40, 30]])
    labels = torch.zeros(1, 120, 200, dtype=torch.long)
    labels[0, 10:30, 20:40] = 3
    sample = DetDataSample(
        gt_instances=InstanceData(bboxes=boxes, labels=torch.tensor([3]), masks=BitmapMasks(masks, 120, 200)),
        pred_instances=InstanceData(
            bboxes=boxes, labels=torch.tensor([3]), masks=torch.from_numpy(masks).bool()
        ),
        gt_sem_seg=PixelData(data=labels),
    )
    image, large = enlarge(photograph(120, 200), sample)
    assert image.shape == (360, 600, 3)
    expected = np.zeros((360, 600), bool)
    expected[30:90, 60:120] = True
    for objects in (large.gt_instances, large.pred_instances):
        assert objects.bboxes.tolist() == [[60, 30, 120, 90]] and objects.labels.tolist() == [3]
    assert np.array_equal(large.gt_instances.masks.to_ndarray()[0], expected)
    assert np.array_equal(large.pred_instances.masks[0].numpy(), expected)
    assert np.array_equal(large.gt_sem_seg.data[0].numpy(), 3 * expected)
    assert sample.gt_instances.bboxes.tolist() == boxes.tolist()  # unchanged for metrics
    assert sample.gt_sem_seg.shape == sample.pred_instances.masks.shape[1:] == (120, 200)


@pytest.mark.parametrize('size', [(2000, 1500), (375, 500), (480, 640)])
def test_large_images_are_not_enlarged(size):
    image = photograph(*size)
    enlarged, _ = enlarge(image, DetDataSample())
    assert enlarged is image


def test_panoptic_prediction_without_segments_is_removed():
    void = torch.full((1, 8, 8), len(CLASSES))
    segments = void.clone().index_fill_(2, torch.arange(4), 1)
    for found, is_kept in ((void, False), (segments, True)):
        sample = DetDataSample(pred_panoptic_seg=PixelData(sem_seg=found))
        assert ('pred_panoptic_seg' in without_empty_segments(sample, len(CLASSES))) == is_kept
        assert 'pred_panoptic_seg' in sample


def test_detections_are_drawn_beside_the_truth():
    visualizer = DetLocalVisualizer()
    visualizer.dataset_meta = dict(classes=CLASSES, palette=PALETTE)
    box = torch.tensor([[20.0, 10, 80, 70]])
    label = torch.tensor([2])
    sample = DetDataSample(
        gt_instances=InstanceData(bboxes=box, labels=label),
        pred_instances=InstanceData(bboxes=box, labels=label, scores=torch.tensor([0.5])),
    )
    image = np.full((128, 160, 3), 128, np.uint8)
    found = draw_beside_truth(visualizer, image, sample, pred_score_thr=0.4)
    missed = draw_beside_truth(visualizer, image, sample, pred_score_thr=0.6)
    width = 4 * 160
    assert found.shape[1] == 2 * width + GAP
    assert np.array_equal(found[:, :width], missed[:, :width])
    changed = (found != missed).any(-1)[:, -width:]
    assert changed.any() and not changed[:, : 4 * 20 - 8].any() and not changed[:, 4 * 80 + 8 :].any()
