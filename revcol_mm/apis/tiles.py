"""Large images in tiles that overlap: memory of the network does not grow with the image.

Letters: H and W size of the image, N detections.
"""

from dataclasses import dataclass
from itertools import accumulate, product
from typing import Any, Iterator, NamedTuple, Sequence

import numpy as np
import torch
from mmengine.structures import InstanceData
from torch import Tensor

AGREEMENT = 0.5  # IoU, where two tiles overlap, from which on their boxes are of one object
AT_BORDER = 2  # pixels from a tile's border within which an object may be cut


class Span(NamedTuple):
    """A tile along one side of the image.

    Args:
        start, stop: Its pixels.
        first, last: Those of them, from ``first`` to before ``last``, that no other tile has, or sees better.
    """

    start: int
    stop: int
    first: int
    last: int


class Tile(NamedTuple):
    """A tile of an image."""

    rows: Span
    columns: Span

    @property
    def box(self) -> tuple[int, int, int, int]:
        """x1, y1, x2, y2."""
        return self.columns.start, self.rows.start, self.columns.stop, self.rows.stop


@dataclass(frozen=True)
class Tiling:
    """How images are cut into tiles.

    Args:
        size: Height and width of a tile, in pixels. An image that is smaller has one tile, of its size.
        overlap: Pixels, at least, that neighbours share. An object that is larger may be found in parts; they
            become one if they agree where tiles overlap.

    Raises:
        ValueError: If there is no tile left without the overlap.
    """

    size: int
    overlap: int

    def __post_init__(self) -> None:
        if self.size < 1 or not 0 <= self.overlap <= self.size // 2:
            raise ValueError(
                f'a tile has 1 pixel or more, half of which may overlap: got {self.size} and {self.overlap}'
            )

    def tiles(self, height: int, width: int) -> Iterator[Tile]:
        """Tiles of an image, row by row."""
        columns = self._spans(width)
        for rows in self._spans(height):
            for span in columns:
                yield Tile(rows, span)

    def _spans(self, length: int) -> list[Span]:
        last = max(length - self.size, 0)
        starts = [*range(0, last, self.size - self.overlap), last]
        stops = [min(start + self.size, length) for start in starts]
        cuts = [(stop + start) // 2 for stop, start in zip(stops, starts[1:])]
        return list(map(Span, starts, stops, [0, *cuts], [*cuts, length]))


def merge_labels(parts: Sequence[tuple[Tile, np.ndarray]], height: int, width: int) -> np.ndarray:
    """Put label maps of tiles together; each pixel has the label of the tile whose border is furthest.

    Args:
        parts: Tiles and their labels.
        height: H.
        width: W.

    Returns:
        (H, W), of the labels' type.
    """
    merged = None
    for (rows, columns), labels in parts:
        if merged is None:
            merged = np.empty((height, width), labels.dtype)
        inside = labels[
            rows.first - rows.start : rows.last - rows.start,
            columns.first - columns.start : columns.last - columns.start,
        ]
        merged[rows.first : rows.last, columns.first : columns.last] = inside
    return merged


def place_detections(found: InstanceData, tile: Tile, height: int, width: int) -> InstanceData:
    """Bring a tile's detections into the image's pixels, on the CPU.

    Args:
        found: bboxes, scores, labels and, if there are any, masks, (N, h, w), in the tile's pixels.
        tile: The tile.
        height: H.
        width: W.

    Returns:
        The same with masks as 'rles', COCO's compressed RLE, which do not take H x W bytes each.
    """
    left, top, *_ = tile.box
    placed = InstanceData(
        bboxes=found.bboxes.cpu() + torch.tensor([left, top, left, top]),
        scores=found.scores.cpu(),
        labels=found.labels.cpu(),
    )
    if 'masks' in found:
        masks = found.masks.cpu().numpy()
        placed.rles = [encode(mask, left, top, height, width) for mask in masks]
    return placed


def merge_detections(parts: Sequence[tuple[Tile, InstanceData]]) -> InstanceData:
    """Put detections of tiles together.

    Two tiles see the same pixels where they overlap. Boxes of one class that agree there are of one object,
    whose box is around both, and whose score is the higher one. What a tile's border cuts, and another tile
    would see as a whole but does not find, is left out.

    Args:
        parts: Tiles, and what :func:`place_detections` returns of each.

    Returns:
        Detections by falling score.
    """
    from pycocotools import mask as coco_mask

    found = InstanceData.cat([instances for _, instances in parts])
    stops = list(accumulate(len(instances) for _, instances in parts))
    ranges = list(map(range, [0, *stops], stops))
    groups = _groups(found.bboxes, found.labels, [tile for tile, _ in parts], ranges)
    best = [max(group, key=lambda index: found.scores[index].item()) for group in groups]
    merged = found[torch.tensor(best, dtype=torch.long)]
    for index, group in enumerate(groups):
        boxes = found.bboxes[group]
        merged.bboxes[index] = torch.cat([boxes[:, :2].amin(0), boxes[:, 2:].amax(0)])
        if 'rles' in found:
            merged.rles[index] = coco_mask.merge([found.rles[member] for member in group])
    return merged[merged.scores.argsort(descending=True, stable=True)]


def _groups(boxes: Tensor, labels: Tensor, tiles: Sequence[Tile], ranges: Sequence[range]) -> list[list[int]]:
    """Indices of the boxes of each object."""
    from torchvision.ops import box_iou

    leader, seen_better = list(range(len(boxes))), torch.zeros(len(boxes), dtype=torch.bool)

    def lead(index: int) -> int:
        while leader[index] != index:
            index = leader[index]
        return index

    for first, second in _neighbours(tiles):
        own, others = ranges[first], ranges[second]
        shared = torch.tensor([tiles[first].box, tiles[second].box])
        low, high = shared[:, :2].amax(0), shared[:, 2:].amin(0)
        if (low >= high).any():
            continue
        for part, tile, better in ((own, tiles[first], tiles[second]), (others, tiles[second], tiles[first])):
            span = slice(part.start, part.stop)
            seen_better[span] |= ~_inside(boxes[span], tile) & _inside(boxes[span], better)
        if not own or not others:
            continue
        limits = torch.cat([low, low]), torch.cat([high, high])
        inside, theirs = (boxes[each.start : each.stop].clamp(*limits) for each in (own, others))
        same = labels[own.start : own.stop, None] == labels[others.start : others.stop]
        overlaps = box_iou(inside, theirs).nan_to_num() * same
        for index, partner in (overlaps >= AGREEMENT).nonzero().tolist():
            kept, joined = sorted([lead(own.start + index), lead(others.start + partner)])
            leader[joined] = kept
    groups: dict[int, list[int]] = {}
    for index in range(len(boxes)):
        groups.setdefault(lead(index), []).append(index)
    return [group for group in groups.values() if not seen_better[group].all()]


def _inside(boxes: Tensor, tile: Tile) -> Tensor:
    """Which boxes, (N, 4), a tile sees as a whole; the image's own border cuts none."""
    sides = tile.columns, tile.rows
    low = [each.start + AT_BORDER if each.start else -AT_BORDER for each in sides]
    high = [each.stop + (AT_BORDER if each.last == each.stop else -AT_BORDER) for each in sides]
    low, high = boxes.new_tensor(low), boxes.new_tensor(high)
    return ((boxes[:, :2] > low) & (boxes[:, 2:] < high)).all(1)


def _neighbours(tiles: Sequence[Tile]) -> Iterator[tuple[int, int]]:
    """Indices of tiles that may overlap: two steps apart at most, as the last of a row is moved back."""
    index = {(tile.rows.start, tile.columns.start): number for number, tile in enumerate(tiles)}
    tops, lefts = (sorted({place[axis] for place in index}) for axis in (0, 1))
    for (row, top), (column, left) in product(enumerate(tops), enumerate(lefts)):
        below, beside = tops[row : row + 3], lefts[max(column - 2, 0) : column + 3]
        for place in product(below, beside):
            if place > (top, left):
                yield index[top, left], index[place]


def encode(mask: np.ndarray, left: int, top: int, height: int, width: int) -> dict[str, Any]:
    """Encode a tile's mask as COCO's compressed RLE of the whole image, without making the whole mask.

    Args:
        mask: (h, w), bool.
        left, top: Place of its first pixel in the image.
        height, width: Of the image.
    """
    from pycocotools import mask as coco_mask

    columns, rows = np.nonzero(mask.T)
    place = (left + columns) * height + top + rows  # RLE goes down the columns
    is_first = np.diff(place, prepend=-2) != 1
    is_last = np.diff(place, append=height * width + 1) != 1
    bounds = np.stack([place[is_first], place[is_last] + 1], 1).ravel()
    counts = np.diff(bounds, prepend=0, append=height * width)
    return coco_mask.frPyObjects(dict(counts=counts.tolist(), size=[height, width]), height, width)
