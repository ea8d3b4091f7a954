"""Baseline of semantic segmentation: predict the most common class at every pixel."""

from typing import Any, Sequence

import numpy as np
from mmengine.evaluator import BaseMetric
from mmengine.registry import METRICS


@METRICS.register_module()
class CommonestClassIoU(BaseMetric):
    """mIoU, in percent, of predicting the most common label of the ground truth at every pixel.

    Classes that are not in the ground truth are left out of the mean, as in MMSegmentation's IoUMetric.

    Args:
        ignore_index: Label of pixels that are not counted. MMSegmentation's default: 255.
    """

    default_prefix = 'commonest_class'

    def __init__(self, ignore_index: int = 255, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.ignore_index = ignore_index

    def process(self, data_batch: dict, data_samples: Sequence[dict]) -> None:
        for sample in data_samples:
            labels = sample['gt_sem_seg']['data'].cpu().numpy().ravel()
            labels = labels[labels != self.ignore_index]
            self.results.append(np.bincount(labels, minlength=len(self.dataset_meta['classes'])))

    def compute_metrics(self, results: list[np.ndarray]) -> dict[str, float]:
        counts = np.sum(results, axis=0)
        iou = counts.max() / counts.sum()  # of the most common class; the IoU of the others is 0
        return {'mIoU': round(100 * iou / np.count_nonzero(counts), 2)}
