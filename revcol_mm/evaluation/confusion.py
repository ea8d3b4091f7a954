"""Which classes are taken for which: a confusion matrix for segmentation, detection and classification."""

from typing import Any, Sequence

import torch
import torch.nn.functional as F
from mmengine.evaluator import BaseMetric
from mmengine.registry import METRICS
from torch import Tensor

BACKGROUND = 'background'  # of detection: no object


def count_confusion(labels: Tensor, predictions: Tensor, num_classes: int) -> Tensor:
    """Count pairs of a label and a prediction.

    Args:
        labels: Classes from 0 on, of any shape.
        predictions: As many.
        num_classes: Number of classes K.

    Returns:
        (K, K), int64; rows are labels, columns predictions.

    Raises:
        ValueError: If a label or prediction is none of the classes, or they are not as many.
    """
    if labels.shape != predictions.shape:
        raise ValueError(f'{tuple(labels.shape)} labels, but {tuple(predictions.shape)} predictions')
    for name, values in (('label', labels), ('prediction', predictions)):
        if values.numel() and not 0 <= values.min() <= values.max() < num_classes:
            beyond = values.max() if values.max() >= num_classes else values.min()
            raise ValueError(f'{name} {beyond.item()} is none of the {num_classes} classes, from 0 on')
    pairs = labels.flatten().long() * num_classes + predictions.flatten()
    return torch.bincount(pairs, minlength=num_classes**2).view(num_classes, num_classes)


def trimap(labels: Tensor, radius: int) -> Tensor:
    """Pixels near a boundary: those in whose window of (2 * radius + 1)^2 there is another label.

    Scores of these pixels alone tell how well a model draws outlines (Kohli et al., "Robust higher order
    potentials", IJCV 2009). Pixels without a class bound a class as others do.

    Args:
        labels: (..., H, W), whole numbers.
        radius: In pixels, from 1 on.

    Returns:
        As ``labels``, bool.
    """
    maps = labels.reshape(-1, 1, *labels.shape[-2:]).float()  # exact up to 2^24
    window = dict(kernel_size=2 * radius + 1, stride=1, padding=radius)
    return (F.max_pool2d(maps, **window) != -F.max_pool2d(-maps, **window)).view(labels.shape)


def class_scores(matrix: Tensor) -> dict[str, Tensor]:
    """Precision, recall and intersection over union of every class; nan where there is nothing to divide by.

    Args:
        matrix: (K, K), as of :func:`count_confusion`.

    Returns:
        'precision', 'recall' and 'iou', each (K,).
    """
    right, labelled, predicted = matrix.diagonal(), matrix.sum(1), matrix.sum(0)
    return dict(
        precision=right / predicted, recall=right / labelled, iou=right / (labelled + predicted - right)
    )


@METRICS.register_module()
class ConfusionMetric(BaseMetric):
    """Confusion matrix of all test images, in the memory of one matrix.

    Segmentation counts pixels, classification images, detection objects. Of detection, the most confident box
    goes first: it takes the object, of any class, that it overlaps most of those not yet taken, if IoU is
    high enough, and is a false one otherwise. Unless most of it is in a region to be ignored, such as COCO's
    crowds, that counts in one more row, the background, and an object that no box takes in one more column.

    Args:
        score_threshold: Of detection: boxes with lower scores do not count.
        iou_threshold: Of detection: lowest IoU of a box and its object, and lowest share of a box in a region
            to be ignored.
        ignore_index: Of segmentation: label of pixels that do not count.
        trimap_radius: Of segmentation: only pixels as near as this to a boundary count, see :func:`trimap`.
            None: all.
        per_class: Of 'precision', 'recall' and 'iou' those that are reported for each class beside the mean.

    Attributes:
        matrix: Counts after evaluation, (K, K), in detection (K + 1, K + 1); rows are the truth.
        classes: Names of its rows.

    Raises:
        ValueError: If a threshold is not from 0 to 1, the radius not from 1 on, a score is none of these, or,
            later, a class is none of the data set's.

    Note:
        On several processes, images that samplers repeat to give all as many count twice.
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
                raise ValueError(f'{name} is from 0 to 1, got {value}')
        if trimap_radius is not None and trimap_radius < 1:
            raise ValueError(f'trimap_radius is a number of pixels from 1 on, got {trimap_radius}')
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
        """Count a batch."""
        self.classes = tuple(self.dataset_meta['classes'])
        if 'pred_instances' in data_samples[0]:
            self.classes += (BACKGROUND,)
        for sample in data_samples:
            counts = count_confusion(*self._pairs(sample), len(self.classes))
            self.results = [self.results[0] + counts] if self.results else [counts]

    def _pairs(self, sample: dict) -> tuple[Tensor, Tensor]:
        """Labels and predictions of a sample that belong together."""
        if 'pred_instances' in sample:
            return self._match(sample)
        if 'pred_sem_seg' in sample:
            labels = sample['gt_sem_seg']['data'].cpu()
            counts = labels != self.ignore_index
            if self.trimap_radius:
                counts &= trimap(labels, self.trimap_radius)
            return labels[counts], sample['pred_sem_seg']['data'].cpu()[counts]
        return sample['gt_label'].cpu(), sample['pred_label'].cpu()

    def _match(self, sample: dict) -> tuple[Tensor, Tensor]:
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
        left = torch.ones(len(true_boxes), dtype=torch.bool)
        for label, overlap, in_ignored in zip(found_labels.tolist(), overlaps, ignored.any(1)):
            candidates = overlap.masked_fill(~left, -1)
            if left.any() and candidates.max() >= self.iou_threshold:
                left[candidates.argmax()] = False
                pairs.append((true_labels[candidates.argmax()].item(), label))
            elif not in_ignored:
                pairs.append((background, label))
        pairs += [(label, background) for label in true_labels[left].tolist()]
        labels, predictions = torch.tensor(pairs, dtype=torch.long).reshape(-1, 2).T
        return labels, predictions

    def compute_metrics(self, results: list[Tensor]) -> dict[str, float]:
        """Keep the matrix; return the means of the classes' scores, and those of each class, in percent."""
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
    return getattr(boxes, 'tensor', boxes).cpu()  # MMDetection's box types hold one
