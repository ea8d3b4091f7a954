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
from torch import Tensor

from revcol_mm.data.pipelines import reads_images
from revcol_mm.preflight import revcol_channels
from revcol_mm.visualization.prediction_pictures import reads_bgr, rgb_picture

from .image_header import ImageError, image_size
from .tile_mergers import TileMerger
from .tiles import Tiling

MAX_PICTURE = 2048  # pixels of the longer side of pictures of images in tiles


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
        tile_merger: What puts predictions of tiles together; None: the task is not done in tiles.
        tiling: How images are cut into tiles; None: they are predicted on as wholes.

    Raises:
        ValueError: If the config cannot be tested, or neither it nor the checkpoint names the classes.
    """

    task: str
    options: tuple[str, ...] = ()  # arguments beside the model
    first_category_id = 0
    needs_one_size = True
    tile_merger: TileMerger | None = None
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
            return self._predict_in_tiles(images)
        return self._predict_on_wholes(images)

    def _predict_on_wholes(self, images: Sequence[np.ndarray]) -> list[Any]:
        with DefaultScope.overwrite_default_scope(self.scope):
            return [self._checked(sample) for sample in self._inferencer.forward(self._preprocess(images))]

    def _predict_in_tiles(self, images: Sequence[np.ndarray]) -> list[Any]:
        """Each tile of all images at once."""
        height, width = images[0].shape[:2]
        if any(image.shape[:2] != (height, width) for image in images):
            raise ValueError('images in tiles are predicted on together if they are of one size')
        parts: list[list[Any]] = [[] for _ in images]
        for tile in self.tiling.tiles(height, width):
            left, top, right, bottom = tile.box
            pieces = [np.ascontiguousarray(image[top:bottom, left:right]) for image in images]
            for found, sample in zip(parts, self._predict_on_wholes(pieces)):
                found.append((tile, self.tile_merger.part(sample, tile, height, width)))
        return [self.tile_merger.merge(found, height, width) for found in parts]

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
            pictures = [_shrunk(picture) for picture in pictures]
            samples = [
                self.tile_merger.scale(sample, *picture.shape[:2])
                for picture, sample in zip(pictures, samples)
            ]
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


def _shrunk(picture: np.ndarray) -> np.ndarray:
    """A picture that can be looked at, of a large image."""
    factor = min(1.0, MAX_PICTURE / max(picture.shape[:2]))
    if factor == 1:
        return picture
    return cv2.resize(picture, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)


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


def taking_arrays(cfg: Config) -> Config:
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
        cfg = taking_arrays(model.cfg)
        # no backends, which would write event files
        cfg.visualizer = ConfigDict(cfg.get('visualizer') or dict(type=visualizer), vis_backends=None)
        super().__init__(cfg)

    def _init_model(self, *_: Any) -> BaseModel:
        return self._ready


def of_ready_model(base: type, model: BaseModel, visualizer: str) -> Any:
    """One of MMEngine's inferencers, of a class of OpenMMLab, with a model that is ready."""
    return type(base.__name__, (_ReadyModel, base), {})(model, visualizer)
