"""How predictions on the tiles of a large image become one, for each task."""

from abc import ABC, abstractmethod
from typing import Any, Sequence

import cv2
import numpy as np
import torch
from mmengine.structures import InstanceData, PixelData

from .tiles import Tile, merge_detections, merge_labels, place_detections

MAX_MASKS = 2**30  # pixels of all masks together, from which on pictures of images in tiles have boxes alone


class TileMerger(ABC):
    """Puts predictions of tiles together."""

    @abstractmethod
    def part(self, sample: Any, tile: Tile, height: int, width: int) -> Any:
        """What is kept of a tile's prediction until there are those of all tiles.

        Args:
            sample: OpenMMLab's, of the tile.
            tile: The tile.
            height, width: Of the image.
        """

    @abstractmethod
    def merge(self, parts: Sequence[tuple[Tile, Any]], height: int, width: int) -> Any:
        """The sample of an image.

        Args:
            parts: Tiles, and what :meth:`part` returned of each.
            height, width: Of the image.
        """

    @abstractmethod
    def scale(self, sample: Any, height: int, width: int) -> Any:
        """What :meth:`merge` returned as a visualizer takes it, in the size of a picture."""


class DetectionMerger(TileMerger):
    """Boxes and, if there are any, masks, which are kept as RLE: ``pred_instances.rles``."""

    def part(self, sample: Any, tile: Tile, height: int, width: int) -> InstanceData:
        return place_detections(sample.pred_instances, tile, height, width)

    def merge(self, parts: Sequence[tuple[Tile, InstanceData]], height: int, width: int) -> Any:
        from mmdet.structures import DetDataSample

        size = dict(ori_shape=(height, width), img_shape=(height, width))
        return DetDataSample(metainfo=size, pred_instances=merge_detections(parts))

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


class LabelMerger(TileMerger):
    """A label for every pixel, in 16 bits."""

    def part(self, sample: Any, tile: Tile, height: int, width: int) -> np.ndarray:
        return sample.pred_sem_seg.data[0].cpu().numpy().astype(np.int16)

    def merge(self, parts: Sequence[tuple[Tile, np.ndarray]], height: int, width: int) -> Any:
        return self._sample(merge_labels(parts, height, width))

    def scale(self, sample: Any, height: int, width: int) -> Any:
        labels = sample.pred_sem_seg.data[0].numpy()
        return self._sample(cv2.resize(labels, (width, height), interpolation=cv2.INTER_NEAREST))

    @staticmethod
    def _sample(labels: np.ndarray) -> Any:
        from mmseg.structures import SegDataSample

        return SegDataSample(pred_sem_seg=PixelData(data=torch.from_numpy(labels)[None]))
