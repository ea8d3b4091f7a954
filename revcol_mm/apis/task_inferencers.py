"""The :class:`revcol_mm.apis.inferencer.Inferencer` of each task."""

from typing import Any

import numpy as np
from mmengine.model import BaseModel

from revcol_mm.visualization.prediction_pictures import without_empty_segments

from .inferencer import Inferencer
from .tile_mergers import DetectionMerger, LabelMerger

MIN_LEGIBLE = 224  # pixels: smaller pictures are enlarged so that class names can be read


class DetectionInferencer(Inferencer):
    """Predicts boxes and, if the model has them, masks.

    Args:
        model: See :class:`Inferencer`.
        score_threshold: Smallest score of a detection, 0 to 1. The default is MMDetection's for drawing.
    """

    task = 'detection'
    prediction = 'pred_instances'
    options: tuple[str, ...] = ('score_threshold',)
    visualizer = 'DetLocalVisualizer'
    first_category_id = 1  # as in COCO
    tile_merger: DetectionMerger | None = DetectionMerger()

    def __init__(self, model: BaseModel, score_threshold: float = 0.3) -> None:
        self.score_threshold = score_threshold
        super().__init__(model)
        if self.task == 'detection' and getattr(model, 'with_mask', False):
            self.task = 'instance segmentation'

    def _wanted(self, sample: Any) -> Any:
        instances = sample.pred_instances
        sample.pred_instances = instances[instances.scores >= self.score_threshold]
        return sample

    def _drawn(self, picture: np.ndarray, sample: Any) -> np.ndarray:
        self._visualizer.add_datasample('', picture, sample, draw_gt=False, pred_score_thr=-1)
        return self._visualizer.get_image()

    def records(self, sample: Any) -> list[dict[str, Any]]:
        """List detections by falling score.

        Returns:
            For each 'label', 'name', 'score', 'bbox' (x, y, width and height in pixels) and, of models that
            predict masks, 'segmentation' (COCO's compressed RLE).
        """
        from mmdet.structures.mask import encode_mask_results, mask2bbox

        found, masks = sample.pred_instances.numpy(), sample.pred_instances.get('masks')
        boxes, rles = found.bboxes, found.get('rles')
        if masks is not None:
            rles = encode_mask_results(found.masks)
            if not boxes.any():  # as in SOLO, which predicts no boxes
                boxes = mask2bbox(masks.cpu()).numpy()
        records = []
        for index in np.argsort(-found.scores, kind='stable'):
            left, top, right, bottom = boxes[index].tolist()
            record = self._record(found.labels[index], found.scores[index])
            record['bbox'] = [left, top, right - left, bottom - top]
            if rles is not None:
                record['segmentation'] = dict(rles[index], counts=rles[index]['counts'].decode())
            records.append(record)
        return records


class PanopticInferencer(DetectionInferencer):
    """Predicts segments of things and stuff."""

    task = 'panoptic segmentation'
    prediction = 'pred_panoptic_seg'
    options = ()
    tile_merger = None

    def _wanted(self, sample: Any) -> Any:
        sample.pop('pred_instances', None)  # only used by metrics
        return sample

    def _drawn(self, picture: np.ndarray, sample: Any) -> np.ndarray:
        return super()._drawn(picture, without_empty_segments(sample, len(self.classes)))

    @staticmethod
    def segments(sample: Any) -> np.ndarray:
        """Return MMDetection's segment id of every pixel, (H, W): class + 1000 x number of a thing."""
        return sample.pred_panoptic_seg.sem_seg[0].cpu().numpy()

    def records(self, sample: Any) -> list[dict[str, Any]]:
        """List segments by falling area: 'id', 'label', 'name' and 'score', their share of pixels."""
        from mmdet.evaluation import INSTANCE_OFFSET

        return [
            dict(id=int(id_), **self._record(id_ % INSTANCE_OFFSET, share))
            for id_, share in _by_area(self.segments(sample))
            if id_ % INSTANCE_OFFSET < len(self.classes)
        ]


class SegmentationInferencer(Inferencer):
    """Predicts a class for every pixel."""

    task = 'semantic segmentation'
    prediction = 'pred_sem_seg'
    visualizer = 'SegLocalVisualizer'
    tile_merger = LabelMerger()

    def __init__(self, model: BaseModel) -> None:
        from mmseg.datasets import BaseSegDataset

        super().__init__(model)
        self.first_category_id = int(bool(self._dataset.metainfo.get('reduce_zero_label')))
        self._visualizer.alpha = 0.5
        if len(model.dataset_meta.get('palette') or ()) != len(self.classes):
            with_random_colours = BaseSegDataset(metainfo=dict(classes=self.classes), lazy_init=True)
            self._visualizer.dataset_meta = with_random_colours.metainfo

    def _drawn(self, picture: np.ndarray, sample: Any) -> np.ndarray:
        from mmseg.structures import SegDataSample

        # As an array, because the visualizer takes a tensor of one pixel for an index.
        sample = SegDataSample(pred_sem_seg=sample.pred_sem_seg.numpy())
        self._visualizer.add_datasample('', picture, sample, draw_gt=False)
        return self._visualizer.get_image()

    @staticmethod
    def labels(sample: Any) -> np.ndarray:
        """Return the label of every pixel, (H, W)."""
        return sample.pred_sem_seg.data[0].cpu().numpy()

    def records(self, sample: Any) -> list[dict[str, Any]]:
        """List classes by falling area: 'label', 'name' and 'score', their share of pixels."""
        return [self._record(label, share) for label, share in _by_area(self.labels(sample))]


def _by_area(labels: np.ndarray) -> list[tuple[int, float]]:
    """Return the labels of a map and their shares of the pixels, by falling share."""
    labels, counts = np.unique(labels, return_counts=True)
    shares = counts / counts.sum()
    return [(labels[index], shares[index]) for index in np.argsort(-shares, kind='stable')]


class ClassificationInferencer(Inferencer):
    """Predicts classes of whole images.

    Args:
        model: See :class:`Inferencer`.
        score_threshold: Smallest score of a class to list, 0 to 1.
        top_k: Largest number of classes to list.
    """

    task = 'classification'
    prediction = 'pred_score'
    visualizer = 'UniversalVisualizer'
    options = ('score_threshold', 'top_k')
    needs_one_size = False  # the test pipeline resizes them to one

    def __init__(self, model: BaseModel, score_threshold: float = 0.0, top_k: int = 5) -> None:
        self.score_threshold = score_threshold
        self.top_k = top_k
        super().__init__(model)

    def _drawn(self, picture: np.ndarray, sample: Any) -> np.ndarray:
        factor = max(1.0, MIN_LEGIBLE / max(picture.shape[:2]))
        return self._visualizer.visualize_cls(
            picture, sample, classes=self.classes, draw_gt=False, rescale_factor=factor
        )

    def records(self, sample: Any) -> list[dict[str, Any]]:
        """List the most likely classes by falling score: 'label', 'name' and 'score'."""
        scores, labels = sample.pred_score.topk(min(self.top_k, len(self.classes)))
        return [
            self._record(label, score)
            for label, score in zip(labels.tolist(), scores.tolist())
            if score >= self.score_threshold
        ]
