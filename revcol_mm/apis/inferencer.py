"""Base of the inferencers, which predict on images of any size and draw with OpenMMLab's visualizers.

OpenMMLab's own inferencers predict on arrays as BGR but draw on them as RGB, keep all results in memory until
the last image, read checkpoints without checks, and give models without class names those of COCO or
Cityscapes.
"""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, Sequence
from uuid import uuid4

import cv2
import numpy as np
import torch
from mmengine.config import Config, ConfigDict
from mmengine.dataset import Compose, pseudo_collate
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, VISUALIZERS, DefaultScope
from torch import Tensor

from revcol_mm.data.pipelines import image_loader, reads_images
from revcol_mm.preflight import revcol_channels
from revcol_mm.visualization.rgb_picture import reads_bgr, rgb_picture

from .image_header import ImageError, header_size
from .tile_mergers import TileMerger
from .tiles import Tiling

MAX_PICTURE = 2048  # pixels of the longer side of drawn pictures, for images in tiles


def _reads_files(name: str) -> bool:
    """Return whether a transform reads images or annotations, by its name.

    Prediction skips both: images are arrays, annotations do not exist.
    """
    return reads_images(name) or (name.startswith('Load') and 'Annotation' in name)


def data_set_for_testing(cfg: Config) -> Any:
    """Build the data set of a config's tests without reading its files. None: the config has none."""
    dataset = (cfg.get('test_dataloader') or {}).get('dataset')
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        return DATASETS.build(ConfigDict(dataset, lazy_init=True)) if dataset else None


class Inferencer(ABC):
    """A model that predicts on images, with methods to read images and to draw and list predictions.

    Build it by :func:`init_inferencer`.

    Args:
        model: As :func:`init_model` returns it.

    Attributes:
        task: Name of the task, such as 'semantic segmentation'.
        prediction: Field of a data sample that holds the task's prediction.
        options: Names of the constructor's arguments besides the model.
        visualizer: Type of the visualizer if the config has none.
        classes: Names of the classes.
        first_category_id: Number of the first class in the data set's format.
        needs_one_size: Whether the images of a batch must have one size.
        tile_merger: Merges the predictions of tiles. None: the task cannot be done in tiles.
        tiling: How images are cut into tiles. None: they are predicted on as a whole.

    Raises:
        ValueError: If the config has no test pipeline, or neither it nor the checkpoint names the classes.
    """

    task: str
    prediction: str
    options: tuple[str, ...] = ()
    visualizer: str
    first_category_id = 0
    needs_one_size = True
    tile_merger: TileMerger | None = None
    tiling: Tiling | None = None

    def __init__(self, model: BaseModel) -> None:
        cfg = model.cfg
        self.model = model
        self._channels = revcol_channels(model)
        self.scope = cfg.default_scope
        self._dataset = data_set_for_testing(cfg)
        transforms = getattr(self._dataset, 'pipeline', Compose([])).transforms
        self._load = image_loader(transforms)
        if self._load is None:
            raise ValueError(f'{cfg.filename}: no LoadImageFromFile in test_dataloader.dataset.pipeline')
        self._transform = Compose([each for each in transforms if not _reads_files(type(each).__name__)])
        model.dataset_meta = {**self._dataset.metainfo, **model.dataset_meta}
        if not model.dataset_meta.get('classes'):
            raise ValueError(
                f'neither the checkpoint nor {cfg.filename} names the classes; set '
                'test_dataloader.dataset.metainfo to dict(classes=[...])'
            )
        self.classes = tuple(model.dataset_meta['classes'])
        visualizer = cfg.get('visualizer') or dict(type=self.visualizer)
        # Visualizers of one name are one object, and backends would write event files.
        visualizer = ConfigDict(visualizer, name=str(uuid4()), vis_backends=None)
        with DefaultScope.overwrite_default_scope(self.scope):
            self._visualizer = VISUALIZERS.build(visualizer)
        self._visualizer.dataset_meta = model.dataset_meta

    def read(self, path: str | Path) -> np.ndarray:
        """Read an image file with the loader of the test pipeline.

        Images may have as many pixels as OpenCV allows, 2**30 by default, which take 3 GB. To limit images
        from others, see :func:`revcol_mm.apis.image_header.check_image_size`.

        Returns:
            (H, W, 3), BGR, or whatever else the loader returns: (H, W) or (H, W, C).

        Raises:
            ImageError: If the image cannot be read, or the model does not take its number of channels.
        """
        try:
            image = self._load(dict(img_path=str(path)))['img']
        except OSError as error:
            raise ImageError(error.strerror or 'not an image, or a broken one') from error
        except Exception as error:  # decoders raise many kinds
            raise ImageError(_reading_problem(error, path)) from error
        return self._with_channels(image)

    def predict(self, images: Sequence[np.ndarray]) -> list[Any]:
        """Predict on one batch.

        Args:
            images: As :meth:`read` returns them, of one size if ``needs_one_size``. If the model takes grey
                images, BGR images such as frames of videos are converted.

        Returns:
            A data sample of MMDetection, MMSegmentation or MMPretrain for each image. For images in tiles,
            masks are in ``pred_instances.rles``, see :class:`revcol_mm.apis.tile_mergers.DetectionMerger`.

        Raises:
            ImageError: If images are too long and thin for the test pipeline, or the model does not take
                their number of channels.
            ValueError: If the model does not predict what its task needs, or images in tiles differ in size.
        """
        return self._predict_whole(images) if self.tiling is None else self._predict_in_tiles(images)

    def _predict_whole(self, images: Sequence[np.ndarray]) -> list[Any]:
        with DefaultScope.overwrite_default_scope(self.scope), torch.no_grad():
            samples = self.model.test_step(self._preprocess(images))
        for sample in samples:
            if self.prediction not in sample:
                raise ValueError(
                    f'{self.model.cfg.filename}: {self.task} needs {self.prediction}, but the model predicts '
                    f'{list(sample.keys())}'
                )
        return [self._wanted(sample) for sample in samples]

    def _predict_in_tiles(self, images: Sequence[np.ndarray]) -> list[Any]:
        height, width = images[0].shape[:2]
        if any(image.shape[:2] != (height, width) for image in images):
            raise ValueError('images in tiles must be of one size to be predicted on in one batch')
        parts: list[list[Any]] = [[] for _ in images]
        for tile in self.tiling.tiles(height, width):
            left, top, right, bottom = tile.box
            pieces = [np.ascontiguousarray(image[top:bottom, left:right]) for image in images]
            for found, sample in zip(parts, self._predict_whole(pieces)):
                found.append((tile, self.tile_merger.part(sample, tile, height, width)))
        return [self.tile_merger.merge(found, height, width) for found in parts]

    def network_input(self, image: np.ndarray) -> tuple[np.ndarray, Tensor]:
        """Return the network's input for an image.

        Args:
            image: As :meth:`read` returns it.

        Returns:
            The picture after the test pipeline, (h, w, 3), RGB, and the normalised input, (1, C, H', W'),
            which may be padded at the right and bottom.
        """
        with DefaultScope.overwrite_default_scope(self.scope), torch.no_grad():
            data = self._preprocess([image])
            picture = rgb_picture(data['inputs'][0].permute(1, 2, 0).numpy(), reads_bgr(self._load))
            inputs = self.model.data_preprocessor(data, training=False)['inputs']
        return picture, inputs

    def draw(self, images: Sequence[np.ndarray], samples: Sequence[Any]) -> list[np.ndarray]:
        """Draw predictions on images.

        Args:
            images: As :meth:`read` returns them. See :func:`rgb_picture` for images that are not RGB.
            samples: As :meth:`predict` returns them.

        Returns:
            Pictures, (H', W', 3), RGB. Images in tiles are scaled down to MAX_PICTURE pixels.
        """
        pictures = [rgb_picture(image, reads_bgr(self._load)) for image in images]
        if self.tiling is not None:
            pictures = [_scaled_down(picture) for picture in pictures]
            samples = [
                self.tile_merger.scale(sample, *picture.shape[:2])
                for picture, sample in zip(pictures, samples)
            ]
        with DefaultScope.overwrite_default_scope(self.scope):
            return [self._drawn(picture, sample) for picture, sample in zip(pictures, samples)]

    @abstractmethod
    def records(self, sample: Any) -> list[dict[str, Any]]:
        """List a prediction, the most important part first: 'label', 'name' and, by task, more."""

    @abstractmethod
    def _drawn(self, picture: np.ndarray, sample: Any) -> np.ndarray:
        """Draw a prediction on an RGB picture."""

    def _wanted(self, sample: Any) -> Any:
        """Remove what callers do not get: objects of low scores, or results that only metrics read."""
        return sample

    def _with_channels(self, image: np.ndarray) -> np.ndarray:
        """Convert BGR to grey if the test pipeline reads grey; check the number of channels."""
        reads_grey = getattr(self._load, 'color_type', '').startswith('grayscale')
        if reads_grey and image.ndim == 3 and image.shape[2] == 3:
            image = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
        channels = 1 if image.ndim == 2 else image.shape[2]
        if self._channels not in (None, channels):
            raise ImageError(f'the image has {channels} channels, but the model takes {self._channels}')
        return image

    def _preprocess(self, images: Sequence[np.ndarray]) -> dict[str, Any]:
        """Return a batch as data loaders do."""
        items = []
        for image in map(self._with_channels, images):
            height, width = size = image.shape[:2]
            try:
                items.append(self._transform(dict(img=image, img_path=None, img_shape=size, ori_shape=size)))
            except cv2.error as error:
                message = f"{width} x {height} pixels cannot be resized to the model's input"
                raise ImageError(message) from error
        return pseudo_collate(items)

    def _record(self, label: int, score: float) -> dict[str, Any]:
        return dict(label=int(label), name=str(self.classes[label]), score=float(score))


def _scaled_down(picture: np.ndarray) -> np.ndarray:
    factor = min(1.0, MAX_PICTURE / max(picture.shape[:2]))
    if factor == 1:
        return picture
    height, width = (max(1, round(side * factor)) for side in picture.shape[:2])
    return cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)


def _reading_problem(error: Exception, path: str | Path) -> str:
    if isinstance(error, MemoryError) or getattr(error, 'code', 0) == cv2.Error.STS_NO_MEM:
        return '{} x {} pixels do not fit into memory'.format(*header_size(path))
    if 'CV_IO_MAX_IMAGE' in str(error):
        size = '{} x {}'.format(*header_size(path))
        return f'{size} pixels are more than OpenCV reads; raise its limit, OPENCV_IO_MAX_IMAGE_PIXELS'
    return 'not an image, or a broken one'
