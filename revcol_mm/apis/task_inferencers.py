"""The :class:`revcol_mm.apis.inferencer.Inferencer` of each task."""

from typing import Any, Sequence

import numpy as np
from mmengine.model import BaseModel

from revcol_mm.visualization.prediction_pictures import without_empty_segments

from .inferencer import Inferencer
from .openmmlab_inferencers import mmengine_inferencer, mmpretrain_inferencer
from .tile_mergers import DetectionMerger, LabelMerger

MIN_LEGIBLE = 224  # pixels: smaller pictures are enlarged so that class names can be read


class DetectionInferencer(Inferencer):
    """Predicts boxes and, if the model has them, masks, by :class:`mmdet.apis.DetInferencer`.

    Args:
        model: See :class:`Inferencer`.
        score_threshold: Smallest score of a detection, 0 to 1. The default is MMDetection's for drawing.
    """

    task = 'detection'
    options: tuple[str, ...] = ('score_threshold',)
    first_category_id = 1  # as in COCO
    tile_merger: DetectionMerger | None = DetectionMerger()

    def __init__(self, model: BaseModel, score_threshold: float = 0.3) -> None:
        self.score_threshold = score_threshold
        super().__init__(model)
        if self.task == 'detection' and getattr(model, 'with_mask', False):
            self.task = 'instance segmentation'

    def _build(self) -> Any:
        from mmdet.apis import DetInferencer

        self.model.dataset_meta.setdefault('palette', 'random')
        return mmengine_inferencer(DetInferencer, self.model, 'DetLocalVisualizer')

    def _preprocess(self, images: Sequence[np.ndarray]) -> dict[str, Any]:
        _, data = super()._preprocess(images)  # with MMDetection's copies of the images first
        return data

    def _checked(self, sample: Any) -> Any:
        self._require(sample, 'pred_instances')
        instances = sample.pred_instances
        sample.pred_instances = instances[instances.scores >= self.score_threshold]
        return sample

    def _draw(self, pictures: list[np.ndarray], samples: Sequence[Any]) -> list[np.ndarray]:
        return self._inferencer.visualize(pictures, samples, return_vis=True, pred_score_thr=-1)

    def records(self, sample: Any) -> list[dict[str, Any]]:
        """List detections by falling score.

        Returns:
            For each 'label', 'name', 'score', 'bbox' (x, y, width and height in pixels) and, of models that
            predict masks, 'segmentation' (COCO's compressed RLE).
        """
        prediction = self._inferencer.pred2dict(sample)
        records = []
        for index in np.argsort(-np.array(prediction['scores']), kind='stable'):
            left, top, right, bottom = prediction['bboxes'][index]
            record = self._record(prediction['labels'][index], prediction['scores'][index])
            record['bbox'] = [left, top, right - left, bottom - top]
            if 'rles' in sample.pred_instances:
                rle = sample.pred_instances.rles[index]
                record['segmentation'] = dict(rle, counts=rle['counts'].decode())
            elif 'masks' in prediction:
                record['segmentation'] = prediction['masks'][index]
            records.append(record)
        return records


class PanopticInferencer(DetectionInferencer):
    """Predicts segments of things and stuff by :class:`mmdet.apis.DetInferencer`."""

    task = 'panoptic segmentation'
    options = ()
    tile_merger = None

    def _checked(self, sample: Any) -> Any:
        self._require(sample, 'pred_panoptic_seg')
        sample.pop('pred_instances', None)  # only used by metrics
        return sample

    def _draw(self, pictures: list[np.ndarray], samples: Sequence[Any]) -> list[np.ndarray]:
        samples = [without_empty_segments(sample, len(self.classes)) for sample in samples]
        return super()._draw(pictures, samples)

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
    """Predicts a class for every pixel by :class:`mmseg.apis.MMSegInferencer`."""

    task = 'semantic segmentation'
    tile_merger = LabelMerger()

    def _build(self) -> Any:
        from mmseg.apis import MMSegInferencer
        from mmseg.datasets import BaseSegDataset

        self.first_category_id = int(bool(self._dataset.metainfo.get('reduce_zero_label')))
        palette = self.model.dataset_meta.get('palette') or ()
        if len(palette) != len(self.classes):  # random colours; the inferencer would use those of Cityscapes
            palette = BaseSegDataset(metainfo=dict(classes=self.classes), lazy_init=True).metainfo['palette']
        self.model.dataset_meta = dict(classes=self.classes, palette=palette)
        return mmengine_inferencer(MMSegInferencer, self.model, 'SegLocalVisualizer')

    def _checked(self, sample: Any) -> Any:
        self._require(sample, 'pred_sem_seg')
        return sample

    def _draw(self, pictures: list[np.ndarray], samples: Sequence[Any]) -> list[np.ndarray]:
        from mmseg.structures import SegDataSample

        # As arrays, because the visualizer takes a tensor of one pixel for an index.
        samples = [SegDataSample(pred_sem_seg=sample.pred_sem_seg.numpy()) for sample in samples]
        return self._inferencer.visualize(pictures, samples, return_vis=True, opacity=0.5)

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
    """Predicts classes of whole images by :class:`mmpretrain.ImageClassificationInferencer`.

    Args:
        model: See :class:`Inferencer`.
        score_threshold: Smallest score of a class to list, 0 to 1.
        top_k: Largest number of classes to list.
    """

    task = 'classification'
    options = ('score_threshold', 'top_k')
    needs_one_size = False  # the test pipeline resizes them to one

    def __init__(self, model: BaseModel, score_threshold: float = 0.0, top_k: int = 5) -> None:
        self.score_threshold = score_threshold
        self.top_k = top_k
        super().__init__(model)

    def _build(self) -> Any:
        from mmpretrain import ImageClassificationInferencer
        from mmpretrain.visualization import UniversalVisualizer

        self._visualizer = UniversalVisualizer()
        return mmpretrain_inferencer(ImageClassificationInferencer, self.model, self.classes)

    def _checked(self, sample: Any) -> Any:
        self._require(sample, 'pred_score')
        return sample

    def _draw(self, pictures: list[np.ndarray], samples: Sequence[Any]) -> list[np.ndarray]:
        return [
            self._visualizer.visualize_cls(
                picture,
                sample,
                classes=self.classes,
                draw_gt=False,
                rescale_factor=max(1.0, MIN_LEGIBLE / max(picture.shape[:2])),
            )
            for picture, sample in zip(pictures, samples)
        ]

    def records(self, sample: Any) -> list[dict[str, Any]]:
        """List the most likely classes by falling score: 'label', 'name' and 'score'."""
        scores, labels = sample.pred_score.topk(min(self.top_k, len(self.classes)))
        return [
            self._record(label, score)
            for label, score in zip(labels.tolist(), scores.tolist())
            if score >= self.score_threshold
        ]
