"""Confusion matrices of segmentation, detection and classification."""

import json

import numpy as np
import pytest
import torch
from matplotlib import pyplot as plt
from mmdet.structures import DetDataSample
from mmengine.evaluator import Evaluator
from mmengine.structures import InstanceData, PixelData
from PIL import Image

from revcol_mm import ConfusionMetric
from revcol_mm.analysis.heat_map import heat_map
from revcol_mm.evaluation.confusion import class_scores, count_confusion, trimap

from .random_checkpoint import CLASSIFIER, DETECTOR, SEGMENTOR, data_options, random_checkpoint

TOOL = 'tools/analysis/confusion.py'
CLASSES = ('cat', 'dog', 'emu')


def test_counts_and_scores_equal_those_of_scikit_learn():
    metrics = pytest.importorskip('sklearn.metrics')
    labels, predictions = torch.randint(4, (2, 500))
    matrix = count_confusion(labels, predictions, 5)
    np.testing.assert_array_equal(matrix, metrics.confusion_matrix(labels, predictions, labels=range(5)))
    scores = class_scores(matrix)
    for name, score in dict(precision='precision', recall='recall', iou='jaccard').items():
        expected = getattr(metrics, f'{score}_score')(labels, predictions, average=None)
        np.testing.assert_allclose(scores[name][:4], expected, rtol=1e-6)
        assert scores[name][4].isnan()


@pytest.mark.parametrize(
    'labels, predictions, message',
    [
        ([0, 3], [0, 0], 'label 3 is not a class: classes are 0 to 2'),
        ([0, 1], [0, -1], 'prediction -1 is not a class: classes are 0 to 2'),
        ([0, 1], [0], r'labels have shape \(2,\), predictions \(1,\)'),
    ],
)
def test_label_or_prediction_that_is_no_class_is_refused(labels, predictions, message):
    with pytest.raises(ValueError, match=message):
        count_confusion(torch.tensor(labels), torch.tensor(predictions), 3)


def evaluate(*samples, batch_size=1, **options):
    """Return metrics and matrix of an evaluation as MMEngine runs it."""
    metric = ConfusionMetric(**options)
    evaluator = Evaluator(metric)
    evaluator.dataset_meta = dict(classes=CLASSES)
    samples = [DetDataSample(**sample) for sample in samples]
    for start in range(0, len(samples), batch_size):
        evaluator.process(samples[start : start + batch_size])
        assert len(metric.results) == 1  # one matrix for any number of images
    return evaluator.evaluate(len(samples)), metric.matrix.tolist()


def segmentation(labels, predictions):
    return dict(
        gt_sem_seg=PixelData(data=torch.tensor([labels])),
        pred_sem_seg=PixelData(data=torch.tensor([predictions])),
    )


def test_segmentation_counts_pixels_except_ignored_ones():
    images = (
        segmentation([[0, 0, 1], [2, 255, 255]], [[0, 1, 1], [0, 2, 0]]),
        segmentation([[2, 2]], [[2, 0]]),
    )
    metrics, matrix = evaluate(*images)
    assert matrix == [[1, 1, 0], [0, 1, 0], [2, 0, 1]]
    assert metrics['confusion/iou'] == pytest.approx(100 * (1 / 4 + 1 / 2 + 1 / 3) / 3, abs=0.01)
    assert evaluate(*images, batch_size=2)[1] == matrix
    assert evaluate(*images, per_class=['iou'])[0] == pytest.approx(
        {**metrics, 'confusion/iou_cat': 25, 'confusion/iou_dog': 50, 'confusion/iou_emu': 100 / 3}, abs=0.01
    )


def test_trimap_contains_the_pixels_near_another_label():
    ndimage = pytest.importorskip('scipy.ndimage')
    labels = torch.from_numpy(
        np.random.default_rng(0).choice([0, 1, 7, 255], (2, 4, 5)).repeat(9, 1).repeat(7, 2)
    )
    for radius in (1, 3):
        near = np.zeros(labels.shape, bool)
        for image, expected in zip(labels.numpy(), near):
            for label in np.unique(image):
                of_label = np.pad(image == label, 20, mode='edge')  # the border of the image is no boundary
                distance = ndimage.distance_transform_cdt(of_label, metric='chessboard')[20:-20, 20:-20]
                expected |= (distance > 0) & (distance <= radius)
        assert 0.1 < near.mean() < 0.9
        np.testing.assert_array_equal(trimap(labels, radius), near)
    assert not trimap(torch.full((1, 5, 5), 3), 2).any()


def test_trimap_radius_counts_only_pixels_near_a_boundary():
    labels = [[0, 0, 0, 0, 2, 2, 2, 255]]
    sample = segmentation(labels, [[1, 1, 1, 0, 0, 0, 2, 2]])
    assert evaluate(sample, trimap_radius=1)[1] == [[1, 0, 0], [0, 0, 0], [1, 0, 1]]
    assert evaluate(sample, trimap_radius=2)[1] == [[1, 1, 0], [0, 0, 0], [2, 0, 1]]


def instances(boxes, labels, scores=None):
    data = InstanceData(
        bboxes=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4), labels=torch.tensor(labels).long()
    )
    if scores is not None:
        data.scores = torch.tensor(scores)
    return data


def detection(truth, found, ignored=((), ())):
    """Arguments are (boxes, labels), those of predictions (boxes, labels, scores)."""
    return dict(
        gt_instances=instances(*truth),
        pred_instances=instances(*found),
        ignored_instances=instances(*ignored),
    )


LEFT, RIGHT, FAR = (0, 0, 10, 10), (20, 0, 30, 10), (50, 50, 60, 60)


def shifted(box, by):
    return box[0] + by, box[1], box[2] + by, box[3]


def test_unmatched_boxes_and_objects_count_as_background():
    truth = [LEFT, RIGHT], [0, 1]
    found = [shifted(LEFT, 1), FAR, shifted(RIGHT, 6)], [1, 2, 1], [0.9, 0.8, 0.7]  # the last: IoU 0.25
    metrics, matrix = evaluate(detection(truth, found))
    assert matrix == [[0, 1, 0, 0], [0, 0, 0, 1], [0, 0, 0, 0], [0, 1, 1, 0]]
    assert metrics['confusion/recall'] == 0  # mean of two classes, since the third has no objects
    _, matrix = evaluate(detection(truth, found), iou_threshold=0.2)
    assert matrix == [[0, 1, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0], [0, 0, 1, 0]]
    _, matrix = evaluate(detection(truth, found), score_threshold=0.85)
    assert matrix == [[0, 1, 0, 0], [0, 0, 0, 1], [0, 0, 0, 0], [0, 0, 0, 0]]


def test_object_is_matched_once_with_the_box_of_highest_score():
    found = [LEFT, shifted(LEFT, 1)], [0, 1], [0.4, 0.6]
    _, matrix = evaluate(detection(([LEFT], [0]), found))
    assert matrix == [[0, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0], [1, 0, 0, 0]]


def test_box_is_matched_with_the_unmatched_object_of_highest_iou():
    truth = [LEFT, shifted(LEFT, 2)], [0, 1]
    found = [shifted(LEFT, 2), shifted(LEFT, 2)], [1, 0], [0.9, 0.8]
    assert evaluate(detection(truth, found))[1] == [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]


def test_unmatched_box_in_an_ignored_region_is_not_counted():
    ignored = [(0, 0, 100, 100)], [0]
    _, matrix = evaluate(detection(([LEFT], [0]), ([LEFT, FAR], [0, 2], [0.9, 0.8]), ignored))
    assert matrix == [[1, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]


def test_images_without_objects_or_boxes_are_counted():
    nothing = [], []
    samples = detection(nothing, ([LEFT], [1], [0.9])), detection(([LEFT], [2]), (*nothing, []))
    assert evaluate(*samples)[1] == [[0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 1], [0, 1, 0, 0]]
    assert evaluate(detection(nothing, (*nothing, [])))[1] == np.zeros((4, 4)).tolist()


def test_classification_counts_images():
    pairs = [(0, 0), (1, 2), (1, 2), (2, 2)]
    samples = [dict(gt_label=torch.tensor([a]), pred_label=torch.tensor([b])) for a, b in pairs]
    assert evaluate(*samples)[1] == [[1, 0, 0], [0, 0, 2], [0, 0, 1]]


def test_nan_is_left_blank_in_the_figure():
    figure, axis = plt.subplots()
    heat_map(axis, np.array([[1.0, -0.001], [np.nan, 0.25]]), 'ab', 'ab')
    assert [(*text.get_position(), text.get_text()) for text in axis.texts] == [
        *((0, 0, '1.00'), (1, 0, '0.00'), (1, 1, '0.25')),
    ]
    plt.close(figure)


@pytest.mark.parametrize(
    'options, message',
    [
        (dict(iou_threshold=50), 'iou_threshold must be from 0 to 1, got 50'),
        (dict(trimap_radius=0), 'trimap_radius must be 1 or more pixels, got 0'),
        (dict(per_class=['iou', 'f1']), 'per_class takes precision, recall and iou, got f1'),
    ],
)
def test_invalid_argument_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ConfusionMetric(**options)


@pytest.mark.parametrize(
    'config, layout, rows', [(SEGMENTOR, 'ade20k', 11), (DETECTOR, 'coco', 11), (CLASSIFIER, 'imagenet', 10)]
)
def test_tool_counts_every_label_of_the_test_images(
    config, layout, rows, sample_data, tmp_path, call_tool, device
):
    def report(name, *options):
        arguments = '--device', device, '--out', tmp_path / name, *options, *data_options(sample_data, layout)
        printed, error = call_tool(TOOL, config, random_checkpoint(config), *arguments)
        assert not error and (tmp_path / name / 'confusion.png').stat().st_size > 10_000
        return printed, json.loads((tmp_path / name / 'confusion.json').read_text())

    printed, full = report('full')
    matrix = np.array(full['matrix'])
    assert matrix.shape == (rows, rows) and len(full['names']) == rows
    if layout == 'ade20k':
        masks = (sample_data / 'ade20k/annotations/validation').iterdir()
        counts = sum(np.bincount(np.asarray(Image.open(mask)).ravel(), minlength=12) for mask in masks)
        counts = counts[1:]  # 0: not labelled
        _, near = report('near', '--trimap', 1)
        assert full['trimap_radius'] is None and near['trimap_radius'] == 1
        assert 0 < np.sum(near['matrix']) < matrix.sum() / 2
        assert 'iou' in full['classes'][0]
    elif layout == 'coco':
        coco = json.loads((sample_data / 'coco/annotations/instances_val2017.json').read_text())
        counts = np.bincount([a['category_id'] - 1 for a in coco['annotations']], minlength=10)
        assert full['score_threshold'] == 0.3
    else:
        counts = [len(list((sample_data / 'imagenet/val' / str(digit)).iterdir())) for digit in range(10)]
    assert matrix.sum(1)[: len(counts)].tolist() == [row['count'] for row in full['classes']] == list(counts)
    assert f'| mean | {sum(counts)} |' in printed


def test_tool_reports_invalid_options_in_one_line(sample_data, call_tool):
    segmentor = TOOL, SEGMENTOR, 'nothing.pth', *data_options(sample_data, 'ade20k')
    detector = TOOL, DETECTOR, 'nothing.pth', *data_options(sample_data, 'coco')
    for arguments, message in (
        ((*segmentor, '--score-threshold', 0.5), 'is no detector, so score_threshold cannot be used'),
        ((*detector, '--trimap', 3), 'is no segmentor, so trimap_radius cannot be used'),
        ((*detector, '--score-threshold', 5), 'score_threshold must be from 0 to 1, got 5'),
        (segmentor, 'nothing.pth'),
    ):
        _, error = call_tool(*arguments)
        assert error.startswith('error: ') and message in error
