"""Predictions on images of any size, for any task, by OpenMMLab's inferencers and visualizers.

Called as they are, these predict on arrays as BGR but draw on them as RGB, keep all results until the last
image is done, read checkpoints themselves, and give models without one the classes of COCO or Cityscapes.
Here they get a model that is ready, and one batch at a time goes through their stages: preprocess, forward,
visualize.
"""

import copy
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, Sequence

import cv2
import numpy as np
import torch
from mmengine.config import Config, ConfigDict
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, TRANSFORMS, DefaultScope
from mmengine.structures import InstanceData, PixelData
from torch import Tensor

from revcol_mm.engine.launch import read_config
from revcol_mm.engine.prediction_pictures import reads_bgr, rgb_picture, without_empty_segments
from revcol_mm.preflight import reads_images, revcol_channels

from .exported_model import ExportedModel, is_exported
from .image_header import ImageError, image_size
from .init_model import init_model
from .tiles import Tile, Tiling, merge_detections, merge_labels, place_detections

MAX_PICTURE = 2048  # pixels of the longer side of pictures of images in tiles
MAX_MASKS = 2**30  # pixels of all masks together, from which on pictures of images in tiles have boxes alone
MIN_LEGIBLE = 224  # pixels of a picture's longer side, to write a class on it


class Inferencer(ABC):
    """A model with all it takes to predict on images, draw the predictions and name them.

    :func:`init_inferencer` makes that of a config's task.

    Args:
        model: As :func:`init_model` returns it.

    Attributes:
        task: In words.
        classes: Names of the labels.
        first_category_id: Number of label 0 in the data set's format.
        needs_one_size: Images of a batch must be of one size.
        tiling: How images are cut into tiles; None: they are predicted on as wholes.

    Raises:
        ValueError: If the config cannot be tested, or neither it nor the checkpoint names the classes.
    """

    task: str
    options: tuple[str, ...] = ()  # arguments beside the model
    first_category_id = 0
    needs_one_size = True
    tiling: Tiling | None = None

    def __init__(self, model: BaseModel) -> None:
        cfg = model.cfg
        dataset_cfg = cfg.get('test_dataloader', {}).get('dataset', {})
        reads = [step for step in dataset_cfg.get('pipeline', ()) if _reads_images(step)]
        if not reads:
            raise ValueError(f'{cfg.filename}: no LoadImageFromFile in test_dataloader.dataset.pipeline')
        self.model = model
        self._channels = revcol_channels(model)
        self.scope = cfg.default_scope
        with DefaultScope.overwrite_default_scope(self.scope):
            self._load = TRANSFORMS.build(reads[0])
            self._dataset = DATASETS.build(ConfigDict(dataset_cfg, lazy_init=True))  # reads no files
            model.dataset_meta = {**self._dataset.metainfo, **model.dataset_meta}
            if not model.dataset_meta.get('classes'):
                raise ValueError(
                    f'neither the checkpoint nor {cfg.filename} names the classes; set '
                    'test_dataloader.dataset.metainfo to dict(classes=[...])'
                )
            self.classes = tuple(model.dataset_meta['classes'])
            self._inferencer = self._build()

    def read(self, path: str | Path) -> np.ndarray:
        """Read an image file as the test pipeline does.

        It may be as large as OpenCV reads, 2**30 pixels by default, which take 3 GB; see
        :func:`check_image_size` for images of others.

        Returns:
            (H, W, 3), BGR, or what else the pipeline reads: (H, W), (H, W, C).

        Raises:
            ImageError: If it cannot be read, or has other channels than those that a RevCol takes.
        """
        try:
            image = self._load(dict(img_path=str(path)))['img']
        except OSError as error:
            raise ImageError(error.strerror or 'not an image, or a broken one') from error
        except Exception as error:  # decoders raise all sorts
            raise ImageError(_unreadable_because(error, path)) from error
        return self._with_channels(image)

    def predict(self, images: Sequence[np.ndarray]) -> list[Any]:
        """Predict on one batch.

        Args:
            images: As :meth:`read` returns them; of one size if ``needs_one_size``. Where it reads grey, BGR,
                (H, W, 3), is turned into grey, as frames of videos are.

        Returns:
            A data sample of MMDetection, MMSegmentation or MMPretrain for each image. Of an image in tiles,
            masks are in ``pred_instances.rles``, see :func:`revcol_mm.apis.tiles.merge_detections`.

        Raises:
            ImageError: If they are too long and thin for the test pipeline, or have other channels than those
                that a RevCol takes.
            ValueError: If the model predicts something else than its task.
        """
        if self.tiling is not None:
            return [self._predict_in_tiles(image) for image in images]
        with DefaultScope.overwrite_default_scope(self.scope):
            return [self._checked(sample) for sample in self._inferencer.forward(self._preprocess(images))]

    def _predict_in_tiles(self, image: np.ndarray) -> Any:
        height, width = image.shape[:2]
        parts = []
        with DefaultScope.overwrite_default_scope(self.scope):
            for tile in self.tiling.tiles(height, width):
                left, top, right, bottom = tile.box
                data = self._preprocess([np.ascontiguousarray(image[top:bottom, left:right])])
                (sample,) = self._inferencer.forward(data)
                parts.append((tile, self._part(self._checked(sample), tile, height, width)))
        return self._merged(parts, height, width)

    def _part(self, sample: Any, tile: Tile, height: int, width: int) -> Any:
        """What is kept of a tile's prediction until those of all tiles of the image are merged."""
        raise NotImplementedError

    def _merged(self, parts: list[tuple[Tile, Any]], height: int, width: int) -> Any:
        """A data sample of the predictions of an image's tiles."""
        raise NotImplementedError

    def network_input(self, image: np.ndarray) -> tuple[np.ndarray, Tensor]:
        """What the network sees of an image.

        Args:
            image: As :meth:`read` returns it.

        Returns:
            The picture after the test pipeline, (h, w, 3), RGB, and the normalised input, (1, C, H', W'),
            which may be padded at its right and bottom.
        """
        with DefaultScope.overwrite_default_scope(self.scope), torch.no_grad():
            data = self._preprocess([image])
            picture = rgb_picture(data['inputs'][0].permute(1, 2, 0).numpy(), reads_bgr(self._load))
            inputs = self.model.data_preprocessor(data, training=False)['inputs']
        return picture, inputs

    def draw(self, images: Sequence[np.ndarray], samples: Sequence[Any]) -> list[np.ndarray]:
        """Draw predictions on images as :meth:`read` returns them; see :func:`rgb_picture` for what is shown.

        Returns:
            Pictures, (H', W', 3), RGB.
        """
        pictures = [rgb_picture(image, reads_bgr(self._load)) for image in images]
        if self.tiling is not None:
            pairs = [self._shrunk(*pair) for pair in zip(pictures, samples)]
            pictures, samples = map(list, zip(*pairs))
        with DefaultScope.overwrite_default_scope(self.scope):
            return self._draw(pictures, samples)

    @abstractmethod
    def records(self, sample: Any) -> list[dict[str, Any]]:
        """A prediction in words and numbers, the most important first: 'label', 'name', and by task more."""

    @abstractmethod
    def _build(self) -> Any:
        """OpenMMLab's inferencer of the model."""

    def _with_channels(self, image: np.ndarray) -> np.ndarray:
        """The image with the channels that the model takes."""
        reads_grey = getattr(self._load, 'color_type', '').startswith('grayscale')
        if reads_grey and image.ndim == 3 and image.shape[2] == 3:
            image = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
        channels = 1 if image.ndim == 2 else image.shape[2]
        if self._channels not in (None, channels):
            raise ImageError(f'it has {channels} channels, the model takes {self._channels}')
        return image

    def _preprocess(self, images: Sequence[np.ndarray]) -> dict[str, Any]:
        images = [self._with_channels(image) for image in images]
        try:
            (data,) = self._inferencer.preprocess(images, batch_size=len(images))
        except cv2.error as error:
            height, width = images[0].shape[:2]
            raise ImageError(
                f'{width} x {height} pixels cannot be brought to the size of the model'
            ) from error
        return data

    def _shrunk(self, picture: np.ndarray, sample: Any) -> tuple[np.ndarray, Any]:
        """A picture that can be looked at, of a large image, and the sample in its size."""
        factor = min(1.0, MAX_PICTURE / max(picture.shape[:2]))
        if factor < 1:
            picture = cv2.resize(picture, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)
        return picture, self._scaled(sample, *picture.shape[:2])

    def _scaled(self, sample: Any, height: int, width: int) -> Any:
        """A sample of tiles as the visualizer takes it, in the size of a picture."""
        raise NotImplementedError

    @abstractmethod
    def _draw(self, pictures: list[np.ndarray], samples: Sequence[Any]) -> list[np.ndarray]:
        """As :meth:`draw`, on RGB."""

    def _checked(self, sample: Any) -> Any:
        """The sample without what is below the threshold."""
        return sample

    def _record(self, label: int, score: float) -> dict[str, Any]:
        return dict(label=int(label), name=str(self.classes[label]), score=float(score))

    def _require(self, sample: Any, key: str) -> None:
        if key not in sample:
            raise ValueError(
                f'{self.model.cfg.filename}: the model predicts {list(sample.keys())}, not {key}'
            )


def _unreadable_because(error: Exception, path: str | Path) -> str:
    if isinstance(error, MemoryError) or getattr(error, 'code', 0) == cv2.Error.STS_NO_MEM:
        return '{} x {} pixels do not fit into memory'.format(*image_size(path))
    if 'CV_IO_MAX_IMAGE' in str(error):
        return '{} x {} pixels are more than OpenCV reads; see OPENCV_IO_MAX_IMAGE_PIXELS'.format(
            *image_size(path)
        )
    return 'not an image, or a broken one'


def _reads_images(step: dict) -> bool:
    return reads_images(step['type'] if isinstance(step['type'], str) else step['type'].__name__)


def _taking_arrays(cfg: Config) -> Config:
    """A copy of a config that reads images by the transform that inferencers replace by one for arrays."""
    cfg = copy.deepcopy(Config(dict(cfg), filename=cfg.filename))
    dataset = cfg.test_dataloader.dataset
    dataset.pipeline = [
        dict(type='LoadImageFromFile') if _reads_images(step) else step for step in dataset.pipeline
    ]
    return cfg


class _ReadyModel:
    """Makes one of MMEngine's inferencers take a model that is ready, instead of a checkpoint to load."""

    def __init__(self, model: BaseModel, visualizer: str) -> None:
        self._ready = model
        cfg = _taking_arrays(model.cfg)
        # no backends, which would write event files
        cfg.visualizer = ConfigDict(cfg.get('visualizer') or dict(type=visualizer), vis_backends=None)
        super().__init__(cfg)

    def _init_model(self, *_: Any) -> BaseModel:
        return self._ready


def _of_ready_model(base: type, model: BaseModel, visualizer: str) -> Any:
    return type(base.__name__, (_ReadyModel, base), {})(model, visualizer)


class DetectionInferencer(Inferencer):
    """Boxes and, if the model predicts them, masks; by :class:`mmdet.apis.DetInferencer`.

    Args:
        model: See :class:`Inferencer`.
        score_threshold: Lowest score of a detection that counts, 0 to 1. Default: MMDetection's for pictures.
    """

    task = 'detection'
    options = ('score_threshold',)
    first_category_id = 1  # as in COCO

    def __init__(self, model: BaseModel, score_threshold: float = 0.3) -> None:
        self.score_threshold = score_threshold
        super().__init__(model)
        if getattr(model, 'with_mask', False):
            self.task = 'instance segmentation'

    def _build(self) -> Any:
        from mmdet.apis import DetInferencer

        self.model.dataset_meta.setdefault('palette', 'random')
        return _of_ready_model(DetInferencer, self.model, 'DetLocalVisualizer')

    def _preprocess(self, images: Sequence[np.ndarray]) -> dict[str, Any]:
        _, data = super()._preprocess(images)
        return data

    def _checked(self, sample: Any) -> Any:
        self._require(sample, 'pred_instances')
        instances = sample.pred_instances
        sample.pred_instances = instances[instances.scores >= self.score_threshold]
        return sample

    def _part(self, sample: Any, tile: Tile, height: int, width: int) -> InstanceData:
        return place_detections(sample.pred_instances, tile, height, width)

    def _merged(self, parts: list[tuple[Tile, Any]], height: int, width: int) -> Any:
        from mmdet.structures import DetDataSample

        size = dict(ori_shape=(height, width), img_shape=(height, width))
        return DetDataSample(metainfo=size, pred_instances=merge_detections(parts))

    def _scaled(self, sample: Any, height: int, width: int) -> Any:
        from mmdet.structures import DetDataSample
        from pycocotools import mask as coco_mask

        found, (before_height, before_width) = sample.pred_instances, sample.ori_shape
        factors = found.bboxes.new_tensor([width / before_width, height / before_height] * 2)
        scaled = InstanceData(bboxes=found.bboxes * factors, scores=found.scores, labels=found.labels)
        if 'rles' in found and len(found) * height * width <= MAX_MASKS:
            masks = [cv2.resize(coco_mask.decode(rle), (width, height)) for rle in found.rles]
            scaled.masks = torch.from_numpy(np.array(masks, bool).reshape(-1, height, width))
        return DetDataSample(metainfo=dict(ori_shape=(height, width)), pred_instances=scaled)

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

    def _build(self) -> Any:
        from mmseg.apis import MMSegInferencer
        from mmseg.datasets import BaseSegDataset

        self.first_category_id = int(bool(self._dataset.metainfo.get('reduce_zero_label')))
        palette = self.model.dataset_meta.get('palette') or ()
        if len(palette) != len(self.classes):  # random ones; the inferencer would take those of Cityscapes
            palette = BaseSegDataset(metainfo=dict(classes=self.classes), lazy_init=True).metainfo['palette']
        self.model.dataset_meta = dict(classes=self.classes, palette=palette)
        return _of_ready_model(MMSegInferencer, self.model, 'SegLocalVisualizer')

    def _checked(self, sample: Any) -> Any:
        self._require(sample, 'pred_sem_seg')
        return sample

    def _draw(self, pictures: list[np.ndarray], samples: Sequence[Any]) -> list[np.ndarray]:
        from mmseg.structures import SegDataSample

        # of one pixel, the visualizer takes a tensor for an index
        samples = [SegDataSample(pred_sem_seg=sample.pred_sem_seg.numpy()) for sample in samples]
        return self._inferencer.visualize(pictures, samples, return_vis=True, opacity=0.5)

    def _part(self, sample: Any, tile: Tile, height: int, width: int) -> np.ndarray:
        return self.labels(sample).astype(np.uint8 if len(self.classes) <= 256 else np.int16)

    def _merged(self, parts: list[tuple[Tile, Any]], height: int, width: int) -> Any:
        from mmseg.structures import SegDataSample

        labels = torch.from_numpy(merge_labels(parts, height, width))
        return SegDataSample(pred_sem_seg=PixelData(data=labels[None]))

    def _scaled(self, sample: Any, height: int, width: int) -> Any:
        from mmseg.structures import SegDataSample

        labels = cv2.resize(self.labels(sample), (width, height), interpolation=cv2.INTER_NEAREST)
        return SegDataSample(pred_sem_seg=PixelData(data=torch.from_numpy(labels)[None]))

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
        self.model._config = _taking_arrays(self.model.cfg)
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


INFERENCERS = {
    'mmdet': DetectionInferencer,
    'mmseg': SegmentationInferencer,
    'mmpretrain': ClassificationInferencer,
}


def _inferencer_of(cfg: Config) -> type[Inferencer]:
    if 'panoptic_fusion_head' in cfg.model and (cfg.model.get('test_cfg') or {}).get('panoptic_on', True):
        return PanopticInferencer
    return INFERENCERS[cfg.default_scope]


def init_inferencer(
    config: str | Path | Config,
    checkpoint: str | Path | None = None,
    device: str | None = None,
    score_threshold: float | None = None,
    top_k: int | None = None,
    tile: int | None = None,
    overlap: int | None = None,
) -> Inferencer:
    """Build what predicts on images for a config's task.

    Args:
        config, checkpoint, device: See :func:`init_model`, whose errors it raises as well. The checkpoint may
            also be a file of tools/export.py, of ONNX or torch.export; the model is not built then.
        score_threshold: Lowest score of a detection or a class that counts, 0 to 1. None: 0.3 for detection,
            0 for classification. Segmentation, semantic or panoptic, has none.
        top_k: How many classes of an image count at most, for classification. None: 5.
        tile: Predict on tiles of this height and width, in pixels of the image, and put them together; for
            detection and semantic segmentation. Each goes through the config's test pipeline, as if it were
            an image. None: on images as wholes.
        overlap: Pixels, at least, that neighbouring tiles share. None: an eighth of a tile.

    Raises:
        ValueError: If an option is out of range or not for this task, or see :class:`Inferencer`.

    Examples:
        >>> inferencer = init_inferencer('configs/dino_revcol_t_coco.py', 'iter_90000.pth')
        >>> image = inferencer.read('street.jpg')
        >>> samples = inferencer.predict([image])
        >>> records, (picture,) = inferencer.records(samples[0]), inferencer.draw([image], samples)
    """
    if score_threshold is not None and not 0 <= score_threshold <= 1:
        raise ValueError(f'a score threshold is from 0 to 1, got {score_threshold}')
    if top_k is not None and top_k < 1:
        raise ValueError(f'top k starts at 1, got {top_k}')
    cfg = config if isinstance(config, Config) else read_config(config)
    kind = _inferencer_of(cfg)
    options = dict(score_threshold=score_threshold, top_k=top_k)
    options = {name: value for name, value in options.items() if value is not None}
    for name in options:
        if name not in kind.options:
            raise ValueError(f'{kind.task} has no {name.replace("_", " ")}')
    if overlap is not None and tile is None:
        raise ValueError('an overlap is of tiles: give their size, too')
    tiling = None if tile is None else Tiling(tile, max(tile, 0) // 8 if overlap is None else overlap)
    if tiling and kind not in (DetectionInferencer, SegmentationInferencer):
        raise ValueError('tiles are for detection and semantic segmentation')
    model = ExportedModel(cfg, checkpoint, device) if is_exported(checkpoint) else None
    inferencer = kind(model or init_model(cfg, checkpoint, device), **options)
    inferencer.tiling = tiling
    return inferencer
