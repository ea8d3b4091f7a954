"""An :class:`revcol_mm.apis.inferencer.Inferencer` for each task."""

from typing import Any, Sequence

import numpy as np
from mmengine.model import BaseModel

from revcol_mm.visualization.prediction_pictures import without_empty_segments

from .inferencer import Inferencer, of_ready_model, taking_arrays
from .tile_mergers import DetectionMerger, LabelMerger

MIN_LEGIBLE = 224  # pixels of a picture's longer side, to write a class on it


class DetectionInferencer(Inferencer):
    """Boxes and, if the model predicts them, masks; by :class:`mmdet.apis.DetInferencer`.

    Args:
        model: See :class:`Inferencer`.
        score_threshold: Lowest score of a detection that counts, 0 to 1. Default: MMDetection's for pictures.
    """

    task = 'detection'
    options = ('score_threshold',)
    first_category_id = 1  # as in COCO
    tile_merger = DetectionMerger()

    def __init__(self, model: BaseModel, score_threshold: float = 0.3) -> None:
        self.score_threshold = score_threshold
        super().__init__(model)
        if getattr(model, 'with_mask', False):
            self.task = 'instance segmentation'

    def _build(self) -> Any:
        from mmdet.apis import DetInferencer

        self.model.dataset_meta.setdefault('palette', 'random')
        return of_ready_model(DetInferencer, self.model, 'DetLocalVisualizer')

    def _preprocess(self, images: Sequence[np.ndarray]) -> dict[str, Any]:
        _, data = super()._preprocess(images)
        return data

    def _checked(self, sample: Any) -> Any:
        self._require(sample, 'pred_instances')
        instances = sample.pred_instances
        sample.pred_instances = instances[instances.scores >= self.score_threshold]
        return sample

    def _draw(self, pictures: list[np.ndarray], samples: Sequence[Any]) -> list[np.ndarray]:
        return self._inferencer.visualize(pictures, samples, return_vis=True, pred_score_thr=-1)

    def records(self, sample: Any) -> list[dict[str, Any]]:
        """Detections by falling score.

        Returns:
            For each 'label', 'name', 'score', 'bbox' (x, y, width and height in pixels) and, of models that
            predict masks, 'segmentation', COCO's compressed RLE.
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
    """Segments of things and stuff, by :class:`mmdet.apis.DetInferencer`; objects are left to metrics."""

    options = ()
    tile_merger = None

    def __init__(self, model: BaseModel) -> None:
        super().__init__(model)
        self.task = 'panoptic segmentation'

    def _checked(self, sample: Any) -> Any:
        self._require(sample, 'pred_panoptic_seg')
        sample.pop('pred_instances', None)
        return sample

    def _draw(self, pictures: list[np.ndarray], samples: Sequence[Any]) -> list[np.ndarray]:
        samples = [without_empty_segments(sample, len(self.classes)) for sample in samples]
        return super()._draw(pictures, samples)

    @staticmethod
    def segments(sample: Any) -> np.ndarray:
        """MMDetection's id of every pixel's segment, (H, W): its class + 1000 x its number among things."""
        return sample.pred_panoptic_seg.sem_seg[0].cpu().numpy()

    def records(self, sample: Any) -> list[dict[str, Any]]:
        """Segments by falling area: 'id', 'label', 'name' and 'score', which is their share of the pixels."""
        from mmdet.evaluation import INSTANCE_OFFSET

        ids, counts = np.unique(self.segments(sample), return_counts=True)
        labels, shares = ids % INSTANCE_OFFSET, counts / counts.sum()
        return [
            dict(id=int(ids[index]), **self._record(labels[index], shares[index]))
            for index in np.argsort(-shares, kind='stable')
            if labels[index] < len(self.classes)
        ]


class SegmentationInferencer(Inferencer):
    """A class for every pixel; by :class:`mmseg.apis.MMSegInferencer`."""

    task = 'semantic segmentation'
    tile_merger = LabelMerger()

    def _build(self) -> Any:
        from mmseg.apis import MMSegInferencer
        from mmseg.datasets import BaseSegDataset

        self.first_category_id = int(bool(self._dataset.metainfo.get('reduce_zero_label')))
        palette = self.model.dataset_meta.get('palette') or ()
        if len(palette) != len(self.classes):  # random ones; the inferencer would take those of Cityscapes
            palette = BaseSegDataset(metainfo=dict(classes=self.classes), lazy_init=True).metainfo['palette']
        self.model.dataset_meta = dict(classes=self.classes, palette=palette)
        return of_ready_model(MMSegInferencer, self.model, 'SegLocalVisualizer')

    def _checked(self, sample: Any) -> Any:
        self._require(sample, 'pred_sem_seg')
        return sample

    def _draw(self, pictures: list[np.ndarray], samples: Sequence[Any]) -> list[np.ndarray]:
        from mmseg.structures import SegDataSample

        # of one pixel, the visualizer takes a tensor for an index
        samples = [SegDataSample(pred_sem_seg=sample.pred_sem_seg.numpy()) for sample in samples]
        return self._inferencer.visualize(pictures, samples, return_vis=True, opacity=0.5)

    @staticmethod
    def labels(sample: Any) -> np.ndarray:
        """The label of every pixel, (H, W)."""
        return sample.pred_sem_seg.data[0].cpu().numpy()

    def records(self, sample: Any) -> list[dict[str, Any]]:
        """Classes by falling area: 'label', 'name' and 'score', which is their share of the pixels."""
        labels, counts = np.unique(self.labels(sample), return_counts=True)
        shares = counts / counts.sum()
        return [self._record(labels[index], shares[index]) for index in np.argsort(-shares, kind='stable')]


class ClassificationInferencer(Inferencer):
    """Classes of whole images; by :class:`mmpretrain.ImageClassificationInferencer`.

    Args:
        model: See :class:`Inferencer`.
        score_threshold: Lowest score of a class that counts, 0 to 1.
        top_k: How many classes count at most.
    """

    task = 'classification'
    options = ('score_threshold', 'top_k')
    needs_one_size = False  # test pipelines make them so

    def __init__(self, model: BaseModel, score_threshold: float = 0.0, top_k: int = 5) -> None:
        self.score_threshold = score_threshold
        self.top_k = top_k
        super().__init__(model)

    def _build(self) -> Any:
        from mmpretrain import ImageClassificationInferencer
        from mmpretrain.visualization import UniversalVisualizer

        self._visualizer = UniversalVisualizer()
        # where MMPretrain's inferencers look for it in a ready model
        self.model._config = taking_arrays(self.model.cfg)
        return ImageClassificationInferencer(self.model, classes=self.classes)

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
        """The most likely classes, by falling score: 'label', 'name' and 'score'."""
        scores, labels = sample.pred_score.topk(min(self.top_k, len(self.classes)))
        return [
            self._record(label, score)
            for label, score in zip(labels.tolist(), scores.tolist())
            if score >= self.score_threshold
        ]
