"""Panoptic quality: Kirillov et al., "Panoptic Segmentation", CVPR 2019, equation 1.

MMDetection matches the segments and counts the matches in these classes.
"""

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

OFFSET = 256**3  # greater than any segment id
VOID = 0  # id of pixels without a label


@dataclass
class PQStatCat:
    """Matching result of one category."""

    iou: float = 0.0  # sum over matched segments
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
        """Return panoptic, segmentation and recognition quality from 0 to 1; 0 if there are no segments."""
        segments = self.tp + 0.5 * self.fp + 0.5 * self.fn
        if not segments:
            return dict(pq=0.0, sq=0.0, rq=0.0)
        return dict(pq=self.iou / segments, sq=self.iou / max(self.tp, 1), rq=self.tp / segments)


class PQStat:
    """Matching result of every category, by category id."""

    def __init__(self) -> None:
        self.pq_per_cat = defaultdict(PQStatCat)

    def __getitem__(self, category: int) -> PQStatCat:
        return self.pq_per_cat[category]

    def __iadd__(self, other: 'PQStat') -> 'PQStat':
        for category, result in other.pq_per_cat.items():
            self.pq_per_cat[category] += result
        return self

    def pq_average(
        self, categories: dict[int, dict[str, Any]], isthing: bool | None
    ) -> tuple[dict[str, float], dict[int, dict[str, float]]]:
        """Average the qualities over all categories that have annotated or predicted segments.

        Args:
            categories: Categories by id; the value ``isthing`` of each is 1 or 0.
            isthing: True averages over things, False over stuff, None over both.

        Returns:
            The means ``pq``, ``sq`` and ``rq`` (NaN if no category has segments) with the number of
            categories ``n``, and the qualities of each category.
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
