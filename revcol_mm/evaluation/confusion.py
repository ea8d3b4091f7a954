"""Confusion matrix of segmentation, detection and classification.

MMSegmentation and MMDetection have scripts for it, not metrics, MMPretrain a metric for classification only,
and torchmetrics and scikit-learn are not among the packages that OpenMMLab needs.
"""

from typing import Any, Sequence

import torch
import torch.nn.functional as F
from mmengine.evaluator import BaseMetric
from mmengine.registry import METRICS
from torch import Tensor

BACKGROUND = 'background'  # the extra row and column of detection: no object


def count_confusion(labels: Tensor, predictions: Tensor, num_classes: int) -> Tensor:
    """Return the confusion matrix of labels and predictions.

    Args:
        labels: Class indices, of any shape.
        predictions: Class indices, of the same shape.
        num_classes: Number of classes K.

    Returns:
        (K, K), int64; rows are labels, columns are predictions.

    Raises:
        ValueError: If the shapes differ, or a label or prediction is not in [0, K).
    """
    if labels.shape != predictions.shape:
        raise ValueError(f'labels have shape {tuple(labels.shape)}, predictions {tuple(predictions.shape)}')
    for name, values in (('label', labels), ('prediction', predictions)):
        if values.numel() and not 0 <= values.min() <= values.max() < num_classes:
            wrong = values.max() if values.max() >= num_classes else values.min()
            raise ValueError(f'{name} {wrong.item()} is not a class: classes are 0 to {num_classes - 1}')
    pairs = labels.flatten().long() * num_classes + predictions.flatten()
    return torch.bincount(pairs, minlength=num_classes**2).view(num_classes, num_classes)


def trimap(labels: Tensor, radius: int) -> Tensor:
    """Mask the pixels near a boundary, whose window of side ``2 * radius + 1`` contains several labels.

    Scores on these pixels measure the quality of outlines (Kohli et al., "Robust higher order potentials",
    IJCV 2009). The ignored label counts as any other label.

    Args:
        labels: (..., H, W), integers.
        radius: In pixels, 1 or more.

    Returns:
        Boolean mask with the shape of ``labels``.
    """
    maps = labels.reshape(-1, 1, *labels.shape[-2:]).float()  # exact up to 2^24
    window = dict(kernel_size=2 * radius + 1, stride=1, padding=radius)
    return (F.max_pool2d(maps, **window) != -F.max_pool2d(-maps, **window)).view(labels.shape)


def class_scores(matrix: Tensor) -> dict[str, Tensor]:
    """Compute precision, recall and intersection over union of every class; NaN where the divisor is 0.

    Args:
        matrix: (K, K), from :func:`count_confusion`.

    Returns:
        'precision', 'recall' and 'iou', each of shape (K,).
    """
    correct, labelled, predicted = matrix.diagonal(), matrix.sum(1), matrix.sum(0)
    return dict(
        precision=correct / predicted,
        recall=correct / labelled,
        iou=correct / (labelled + predicted - correct),
    )


@METRICS.register_module()
class ConfusionMetric(BaseMetric):
    """Confusion matrix summed over all test images.

    Segmentation counts pixels, classification counts images, detection counts objects. In detection, boxes
    are matched in descending order of score: a box matches the object, of any class, with the highest IoU
    among those not matched yet, if that IoU reaches the threshold. A box without a match counts in the
    additional row 'background', unless it lies in a region to be ignored, such as a COCO crowd. An object
    without a match counts in the additional column.

    Args:
        score_threshold: Detection only: boxes with lower scores are not counted.
        iou_threshold: Detection only: minimum IoU of a match, and minimum fraction of a box inside an ignored
            region for the box to be ignored.
        ignore_index: Segmentation only: label of pixels that are not counted.
        trimap_radius: Segmentation only: count only pixels at most this far from a boundary, see
            :func:`trimap`. None: all pixels.
        per_class: Which of 'precision', 'recall' and 'iou' to report for each class as well as their mean.

    Attributes:
        matrix: Counts after evaluation, (K, K), in detection (K + 1, K + 1); rows are the ground truth.
        classes: Names of the rows.

    Raises:
        ValueError: If an argument is out of range or, during evaluation, a label is not a class.

    Note:
        In distributed testing, images that the sampler repeats to fill the last batch count twice.
    """

    default_prefix = 'confusion'

    def __init__(
        self,
        score_threshold: float = 0.3,
        iou_threshold: float = 0.5,
        ignore_index: int = 255,
        trimap_radius: int | None = None,
        per_class: Sequence[str] = (),
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        for name, value in dict(score_threshold=score_threshold, iou_threshold=iou_threshold).items():
            if not 0 <= value <= 1:
                raise ValueError(f'{name} must be from 0 to 1, got {value}')
        if trimap_radius is not None and trimap_radius < 1:
            raise ValueError(f'trimap_radius must be 1 or more pixels, got {trimap_radius}')
        self.score_threshold = score_threshold
        self.iou_threshold = iou_threshold
        self.ignore_index = ignore_index
        self.trimap_radius = trimap_radius
        if unknown := set(per_class) - {'precision', 'recall', 'iou'}:
            raise ValueError(f'per_class takes precision, recall and iou, got {", ".join(sorted(unknown))}')
        self.per_class = tuple(per_class)
        self.matrix: Tensor | None = None
        self.classes: tuple[str, ...] = ()

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        self.classes = tuple(self.dataset_meta['classes'])
        if 'pred_instances' in data_samples[0]:
            self.classes += (BACKGROUND,)
        for sample in data_samples:
            counts = count_confusion(*self._pairs(sample), len(self.classes))
            self.results = [self.results[0] + counts] if self.results else [counts]

    def _pairs(self, sample: dict) -> tuple[Tensor, Tensor]:
        """Return the labels and predictions to be counted, paired by position."""
        if 'pred_instances' in sample:
            return self._match(sample)
        if 'pred_sem_seg' in sample:
            labels = sample['gt_sem_seg']['data'].cpu()
            counted = labels != self.ignore_index
            if self.trimap_radius:
                counted &= trimap(labels, self.trimap_radius)
            return labels[counted], sample['pred_sem_seg']['data'].cpu()[counted]
        return sample['gt_label'].cpu(), sample['pred_label'].cpu()

    def _match(self, sample: dict) -> tuple[Tensor, Tensor]:
        """Match predicted boxes with objects, see the class."""
        from mmdet.structures.bbox import bbox_overlaps

        found, truth = sample['pred_instances'], sample['gt_instances']
        found_boxes, true_boxes, ignored_boxes = (
            _plain_boxes(instances) for instances in (found, truth, sample.get('ignored_instances'))
        )
        scores, order = found['scores'].cpu().sort(descending=True, stable=True)
        order = order[scores >= self.score_threshold]
        found_labels, true_labels = found['labels'].cpu()[order], truth['labels'].cpu()
        overlaps = bbox_overlaps(found_boxes[order], true_boxes)
        ignored = bbox_overlaps(found_boxes[order], ignored_boxes, mode='iof') >= self.iou_threshold

        background = len(self.classes) - 1
        pairs = []
        unmatched = torch.ones(len(true_boxes), dtype=torch.bool)
        for label, overlap, in_ignored in zip(found_labels.tolist(), overlaps, ignored.any(1)):
            candidates = overlap.masked_fill(~unmatched, -1)
            if unmatched.any() and candidates.max() >= self.iou_threshold:
                unmatched[candidates.argmax()] = False
                pairs.append((true_labels[candidates.argmax()].item(), label))
            elif not in_ignored:
                pairs.append((background, label))
        pairs += [(label, background) for label in true_labels[unmatched].tolist()]
        labels, predictions = torch.tensor(pairs, dtype=torch.long).reshape(-1, 2).T
        return labels, predictions

    def compute_metrics(self, results: list[Tensor]) -> dict[str, float]:
        """Store the matrix; return the mean scores, and those of each class in ``per_class``, in percent."""
        self.matrix = torch.stack(results).sum(0)
        classes = self.dataset_meta['classes']  # without the background
        scores = {name: values[: len(classes)] for name, values in class_scores(self.matrix).items()}
        metrics = {name: values.nanmean() for name, values in scores.items()}
        for name in self.per_class:
            metrics.update({f'{name}_{each}': value for each, value in zip(classes, scores[name])})
        return {name: round(100 * value.item(), 2) for name, value in metrics.items()}


def _plain_boxes(instances: dict | None) -> Tensor:
    if instances is None or 'bboxes' not in instances:
        return torch.empty(0, 4)
    boxes = instances['bboxes']
    return getattr(boxes, 'tensor', boxes).cpu()  # unwraps MMDetection's box types
