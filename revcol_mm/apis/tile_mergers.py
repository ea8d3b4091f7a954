"""Merging the predictions on the tiles of an image, for each task.

Shapes: H and W height and width of the image, h and w of a tile, N detections.
"""

from abc import ABC, abstractmethod
from itertools import accumulate
from typing import Any, Iterator, Sequence

import cv2
import numpy as np
import torch
from mmengine.structures import InstanceData, PixelData
from torch import Tensor

from .tiles import Tile

AGREEMENT = 0.5  # smallest IoU, within the overlap of two tiles, of two boxes of one object
AT_BORDER = 2  # pixels: an object that is closer to a tile's border may be cut
MAX_MASKS = 2**30  # pixels of all masks together, above which only boxes are drawn


class TileMerger(ABC):
    """Merges predictions of tiles."""

    @abstractmethod
    def part(self, sample: Any, tile: Tile, height: int, width: int) -> Any:
        """Reduce a tile's prediction to what is needed for merging.

        Args:
            sample: Data sample of the tile.
            tile: The tile.
            height, width: Of the image.
        """

    @abstractmethod
    def merge(self, parts: Sequence[tuple[Tile, Any]], height: int, width: int) -> Any:
        """Return the data sample of an image.

        Args:
            parts: Tiles, and what :meth:`part` returned for each.
            height, width: Of the image.
        """

    @abstractmethod
    def scale(self, sample: Any, height: int, width: int) -> Any:
        """Scale the result of :meth:`merge` to a picture of this size, in the form that visualizers take."""


class LabelMerger(TileMerger):
    """Merges label maps: every pixel gets the label of the tile in which it is furthest from a border."""

    def part(self, sample: Any, tile: Tile, height: int, width: int) -> np.ndarray:
        return sample.pred_sem_seg.data[0].cpu().numpy().astype(np.int16)

    def merge(self, parts: Sequence[tuple[Tile, np.ndarray]], height: int, width: int) -> Any:
        merged = np.empty((height, width), np.int16)
        for (rows, columns), labels in parts:
            merged[rows.first : rows.last, columns.first : columns.last] = labels[
                rows.first - rows.start : rows.last - rows.start,
                columns.first - columns.start : columns.last - columns.start,
            ]
        return self._sample(merged)

    def scale(self, sample: Any, height: int, width: int) -> Any:
        labels = sample.pred_sem_seg.data[0].numpy()
        return self._sample(cv2.resize(labels, (width, height), interpolation=cv2.INTER_NEAREST))

    @staticmethod
    def _sample(labels: np.ndarray) -> Any:
        from mmseg.structures import SegDataSample

        return SegDataSample(pred_sem_seg=PixelData(data=torch.from_numpy(labels)[None]))


class DetectionMerger(TileMerger):
    """Merges boxes and masks, if there are any.

    Boxes of one class that agree where two tiles overlap belong to one object. Its box encloses both, and its
    score is the higher one. A box that a tile's border may cut is left out if another tile sees all of it and
    found nothing there.

    The merged ``pred_instances`` are sorted by falling score. Masks are in ``rles``, as COCO's compressed
    RLE of the image, since masks as tensors would take H x W bytes each.
    """

    def part(self, sample: Any, tile: Tile, height: int, width: int) -> InstanceData:
        found, (left, top, *_) = sample.pred_instances, tile.box
        placed = InstanceData(
            bboxes=found.bboxes.cpu() + torch.tensor([left, top, left, top]),
            scores=found.scores.cpu(),
            labels=found.labels.cpu(),
        )
        if 'masks' in found:
            placed.rles = [encode_mask(mask, left, top, height, width) for mask in found.masks.cpu().numpy()]
        return placed

    def merge(self, parts: Sequence[tuple[Tile, InstanceData]], height: int, width: int) -> Any:
        from mmdet.structures import DetDataSample
        from pycocotools import mask as coco_mask

        found = InstanceData.cat([instances for _, instances in parts])
        stops = list(accumulate(len(instances) for _, instances in parts))
        ranges = list(map(range, [0, *stops], stops))
        groups = _objects(found.bboxes, found.labels, [tile for tile, _ in parts], ranges)
        best = [max(group, key=lambda index: found.scores[index].item()) for group in groups]
        merged = found[torch.tensor(best, dtype=torch.long)]
        for index, group in enumerate(groups):
            boxes = found.bboxes[group]
            merged.bboxes[index] = torch.cat([boxes[:, :2].amin(0), boxes[:, 2:].amax(0)])
            if 'rles' in found:
                merged.rles[index] = coco_mask.merge([found.rles[member] for member in group])
        merged = merged[merged.scores.argsort(descending=True, stable=True)]
        size = dict(ori_shape=(height, width), img_shape=(height, width))
        return DetDataSample(metainfo=size, pred_instances=merged)

    def scale(self, sample: Any, height: int, width: int) -> Any:
        from mmdet.structures import DetDataSample
        from pycocotools import mask as coco_mask

        found, (before_height, before_width) = sample.pred_instances, sample.ori_shape
        factors = found.bboxes.new_tensor([width / before_width, height / before_height] * 2)
        scaled = InstanceData(bboxes=found.bboxes * factors, scores=found.scores, labels=found.labels)
        if 'rles' in found and len(found) * height * width <= MAX_MASKS:
            masks = [cv2.resize(coco_mask.decode(rle), (width, height)) for rle in found.rles]
            scaled.masks = torch.from_numpy(np.array(masks, bool).reshape(-1, height, width))
        return DetDataSample(metainfo=dict(ori_shape=(height, width)), pred_instances=scaled)


def _objects(
    boxes: Tensor, labels: Tensor, tiles: Sequence[Tile], ranges: Sequence[range]
) -> list[list[int]]:
    """Group the indices of boxes by object; ``ranges`` has the indices of each tile's boxes."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components
    from torchvision.ops import box_iou

    seen_better = torch.zeros(len(boxes), dtype=torch.bool)  # cut here, but another tile sees all of it
    pairs = [torch.zeros(0, 2, dtype=torch.long)]  # boxes of one object
    for first, second, low, high in _overlaps(tiles):
        own, others = ranges[first], ranges[second]
        for part, tile, other in ((own, tiles[first], tiles[second]), (others, tiles[second], tiles[first])):
            span = slice(part.start, part.stop)
            seen_better[span] |= ~_is_uncut(boxes[span], tile) & _is_uncut(boxes[span], other)
        if not own or not others:
            continue
        limits = torch.cat([low, low]), torch.cat([high, high])
        clipped = [boxes[each.start : each.stop].clamp(*limits) for each in (own, others)]
        same = labels[own.start : own.stop, None] == labels[others.start : others.stop]
        overlaps = box_iou(*clipped).nan_to_num() * same
        pairs.append((overlaps >= AGREEMENT).nonzero() + torch.tensor([own.start, others.start]))
    joined = torch.cat(pairs).numpy()
    graph = coo_array((np.ones(len(joined)), joined.T), (len(boxes), len(boxes)))
    number, objects = connected_components(graph, directed=False)
    groups: list[list[int]] = [[] for _ in range(number)]
    for index, object_ in enumerate(objects):
        groups[object_].append(index)
    return [group for group in groups if not seen_better[group].all()]


def _is_uncut(boxes: Tensor, tile: Tile) -> Tensor:
    """Return which boxes, (N, 4), a tile's border cannot cut. The border of the image cuts nothing."""
    sides = tile.columns, tile.rows
    low = [each.start + AT_BORDER if each.start else -AT_BORDER for each in sides]
    high = [each.stop + (AT_BORDER if each.last == each.stop else -AT_BORDER) for each in sides]
    return ((boxes[:, :2] > boxes.new_tensor(low)) & (boxes[:, 2:] < boxes.new_tensor(high))).all(1)


def _overlaps(tiles: Sequence[Tile]) -> Iterator[tuple[int, int, Tensor, Tensor]]:
    """Yield the pairs of indices of tiles that overlap, with x1, y1 and x2, y2 of what they share."""
    boxes = torch.tensor([tile.box for tile in tiles])
    for first in range(len(tiles)):
        low = boxes[first + 1 :, :2].maximum(boxes[first, :2])
        high = boxes[first + 1 :, 2:].minimum(boxes[first, 2:])
        for step in (low < high).all(1).nonzero().flatten().tolist():
            yield first, first + 1 + step, low[step], high[step]


def encode_mask(mask: np.ndarray, left: int, top: int, height: int, width: int) -> dict[str, Any]:
    """Encode a tile's mask as COCO's compressed RLE of the image, without building the image's mask.

    Args:
        mask: (h, w), bool.
        left, top: Position of its first pixel in the image.
        height, width: Of the image.
    """
    from pycocotools import mask as coco_mask

    columns, rows = np.nonzero(mask.T)
    place = (left + columns) * height + top + rows  # RLE is in column-major order
    is_first = np.diff(place, prepend=-2) != 1
    is_last = np.diff(place, append=height * width + 1) != 1
    bounds = np.stack([place[is_first], place[is_last] + 1], 1).ravel()
    counts = np.diff(bounds, prepend=0, append=height * width)
    return coco_mask.frPyObjects(dict(counts=counts.tolist(), size=[height, width]), height, width)
