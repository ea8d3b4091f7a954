"""Panoptic quality: Kirillov et al., "Panoptic Segmentation", CVPR 2019, equation 1.

MMDetection matches the segments, and counts them in these classes.
"""

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

OFFSET = 256**3  # more than any id of a segment
VOID = 0  # the id of pixels without a label


@dataclass
class PQStatCat:
    """What was found of a category: summed IoU of matched segments, and numbers of segments."""

    iou: float = 0.0
    tp: int = 0
    fp: int = 0
    fn: int = 0

    def __iadd__(self, other: 'PQStatCat') -> 'PQStatCat':
        self.iou += other.iou
        self.tp += other.tp
        self.fp += other.fp
        self.fn += other.fn
        return self

    def quality(self) -> dict[str, float]:
        """Panoptic, segmentation and recognition quality, from 0 to 1; 0 if there are no segments."""
        segments = self.tp + 0.5 * self.fp + 0.5 * self.fn
        if not segments:
            return dict(pq=0.0, sq=0.0, rq=0.0)
        return dict(pq=self.iou / segments, sq=self.iou / max(self.tp, 1), rq=self.tp / segments)


class PQStat:
    """What was found of every category, by its id."""

    def __init__(self) -> None:
        self.pq_per_cat = defaultdict(PQStatCat)

    def __getitem__(self, category: int) -> PQStatCat:
        return self.pq_per_cat[category]

    def __iadd__(self, other: 'PQStat') -> 'PQStat':
        for category, found in other.pq_per_cat.items():
            self.pq_per_cat[category] += found
        return self

    def pq_average(
        self, categories: dict[int, dict[str, Any]], isthing: bool | None
    ) -> tuple[dict[str, float], dict[int, dict[str, float]]]:
        """Mean qualities of the categories that have segments, annotated or predicted.

        Args:
            categories: By id; ``isthing`` of each is 1 or 0.
            isthing: Of which to take the mean: things, stuff, or all (None).

        Returns:
            ``pq``, ``sq``, ``rq``, and ``n``, the number of categories that they are the mean of, without any
            NaN; and the qualities of each category.
        """
        chosen = [
            category
            for category, info in categories.items()
            if isthing is None or bool(info['isthing']) == isthing
        ]
        each = {category: self[category].quality() for category in chosen}
        seen = [each[category] for category in chosen if self[category] != PQStatCat()]
        mean = {
            name: sum(quality[name] for quality in seen) / len(seen) if seen else float('nan')
            for name in ('pq', 'sq', 'rq')
        }
        return dict(mean, n=len(seen)), each
