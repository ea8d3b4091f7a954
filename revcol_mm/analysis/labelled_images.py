"""Batches of equally sized images and labels from a config's data sets, for analyses.

Letters: B images, H and W their height and width, K classes.
"""

from pathlib import Path
from typing import Any, Iterator, NamedTuple, Sequence

import torch
from mmengine.config import Config, ConfigDict
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from torch import Tensor
from torch.nn import functional as F

from revcol_mm.data.pipelines import ignore_index, transform_name
from revcol_mm.evaluation.confusion import BACKGROUND
from revcol_mm.preflight import check_files

LABEL_STRIDE = 4  # stride of dense labels, the same as that of level 0
COARSEST_STRIDE = 32  # stride of level 3; image sizes are multiples of it
UNLABELLED = -1  # label of pixels without a class


class Batch(NamedTuple):
    """A batch of images.

    Args:
        data: Output of the data loader and input of the data preprocessor.
        images: Pixels divided by 255, (B, C, H, W), with channels in the order of the data set.
        labels: Classification: the class of every image, (B,). Detection and segmentation: the class at the
            centre of every LABEL_STRIDE x LABEL_STRIDE pixels, (B, H / 4, W / 4), or UNLABELLED.
    """

    data: dict[str, Any]
    images: Tensor
    labels: Tensor


class LabelledImages:
    """Loads the images and labels of a data set in batches, without augmentation.

    Detection and segmentation: images are loaded as in testing and resized to one size, together with their
    annotations. In detection the label of a pixel is the class of the smallest box around it, or the
    additional class 'background'. Classification: images are as in testing, unless a size is given.

    Args:
        cfg: The config.
        split: 'train', 'val' or 'test', the data loader whose data set is used.
        batch_size: Number of images in a batch.
        size: H and W; None for :func:`testing_size`.
        num_images: Largest number of images to use; None for all.
        seed: Seed of the order of the images; None for the data set's own order.
        drop_last: Whether to leave out an incomplete last batch.

    Raises:
        FileNotFoundError: If data are missing.
        ValueError: If the split has no data or too few for a batch, the size is not a multiple of 32, or the
            data set does not name its classes.
    """

    def __init__(
        self,
        cfg: Config,
        split: str,
        batch_size: int,
        size: Sequence[int] | None = None,
        num_images: int | None = None,
        seed: int | None = None,
        drop_last: bool = False,
    ) -> None:
        loader = cfg.get(f'{split}_dataloader')
        if loader is None or cfg.get('test_dataloader') is None:
            raise ValueError(f'{cfg.filename} lacks {split}_dataloader or test_dataloader, which are needed')
        if batch_size < 1 or (num_images is not None and num_images < 1):
            raise ValueError(
                f'batch size and number of images must be at least 1, got {batch_size} and {num_images}'
            )
        pipeline = _fixed_size(cfg, size)
        self.config = ConfigDict(
            batch_size=batch_size,
            num_workers=loader.get('num_workers', 0),
            sampler=dict(type='DefaultSampler', shuffle=seed is not None),
            dataset=_with_pipeline(loader.dataset, pipeline),
            drop_last=drop_last,
        )
        check_files(Config(dict(model={}, loader=self.config)), ('loader',))
        with DefaultScope.overwrite_default_scope(cfg.default_scope):
            self.loader = Runner.build_dataloader(self.config, seed=seed)
        self.num_images = min(num_images or len(self.loader.dataset), len(self.loader.dataset))
        if drop_last:
            self.num_images -= self.num_images % batch_size
        if not self.num_images:
            raise ValueError(
                f'the {split} split has {len(self.loader.dataset)} images, fewer than a batch of {batch_size}'
            )
        self.classes = tuple(self.loader.dataset.metainfo.get('classes') or ())
        if not self.classes:
            raise ValueError(f'the data set of the {split} split does not name its classes')
        if cfg.default_scope == 'mmdet':
            self.classes += (BACKGROUND,)

    def __len__(self) -> int:
        """Number of batches."""
        return -(-self.num_images // self.config.batch_size)

    def batches(self, epoch: int = 0) -> Iterator[Batch]:
        """Yield every image once. With a seed, the order differs between epochs.

        Raises:
            ValueError: If an image of a classification data set has several classes.
        """
        self.loader.sampler.set_epoch(epoch)
        left = self.num_images
        for data in self.loader:
            data = {key: value[:left] for key, value in data.items()}
            left -= len(data['inputs'])
            images = torch.stack(list(data['inputs'])).float() / 255
            yield Batch(data, images, self._labels(data['data_samples'], images.shape[2:]))
            if not left:
                return

    def _labels(self, samples: Sequence[Any], size: torch.Size) -> Tensor:
        if 'gt_label' in samples[0]:
            labels = torch.cat([sample.gt_label for sample in samples])
            if len(labels) != len(samples):
                raise ValueError(f'every image must have one class, but {len(samples)} have {len(labels)}')
            return labels
        centres = slice(LABEL_STRIDE // 2, None, LABEL_STRIDE)
        return torch.stack([self._label_map(sample, size)[centres, centres] for sample in samples])

    def _label_map(self, sample: Any, size: torch.Size) -> Tensor:
        """Return the class of every pixel, (H, W)."""
        if 'gt_sem_seg' in sample:
            labels = sample.gt_sem_seg.data[0].long()
            return labels.masked_fill(labels == ignore_index(self.loader.dataset), UNLABELLED)
        boxes = sample.gt_instances.bboxes
        boxes = getattr(boxes, 'tensor', boxes)  # MMDetection's box types wrap a tensor
        areas = (boxes[:, 2:] - boxes[:, :2]).prod(1)
        labels = torch.full(tuple(size), len(self.classes) - 1)
        for index in areas.argsort(descending=True):  # smaller boxes overwrite larger ones
            left, top, right, bottom = boxes[index].round().long().clamp(min=0).tolist()
            labels[top:bottom, left:right] = sample.gt_instances.labels[index]
        return labels


def label_shares(labels: Tensor, num_classes: int) -> Tensor:
    """Compute the share of every class in an image, or in every cell of 32 x 32 pixels.

    Args:
        labels: See :class:`Batch`.
        num_classes: K.

    Returns:
        (B, K), one-hot, for image labels; (B, K, H / 32, W / 32) for dense labels. Unlabelled pixels count
        for no class.
    """
    shares = F.one_hot(labels.clamp(min=0), num_classes) * (labels != UNLABELLED).unsqueeze(-1)
    if labels.ndim == 1:
        return shares.float()
    return F.avg_pool2d(shares.movedim(-1, 1).float(), COARSEST_STRIDE // LABEL_STRIDE)


def testing_size(cfg: Config) -> tuple[int, int]:
    """Return a square size with the length of the shorter side to which the config resizes test images.

    The length is rounded to a multiple of COARSEST_STRIDE.

    Raises:
        ValueError: If the test pipeline does not resize images to one scale.
    """
    for transform in innermost_dataset(cfg.test_dataloader.dataset).pipeline:
        scale = transform.get('scale')
        if 'Resize' in transform_name(transform) and isinstance(scale, (tuple, list)):
            return (max(round(min(scale) / COARSEST_STRIDE), 1) * COARSEST_STRIDE,) * 2
    raise ValueError(
        f'{Path(cfg.filename).name}: the test pipeline has no Resize with one scale; give a size'
    )


def _fixed_size(cfg: Config, size: Sequence[int] | None) -> list[dict]:
    """Return the test pipeline, reduced to loading, resizing and packing."""
    pipeline = innermost_dataset(cfg.test_dataloader.dataset).pipeline
    if size is None:
        if cfg.default_scope == 'mmpretrain':
            return pipeline
        size = testing_size(cfg)
    if any(side < COARSEST_STRIDE or side % COARSEST_STRIDE for side in size):
        raise ValueError(
            f'height and width must be multiples of {COARSEST_STRIDE}, got {size[0]} and {size[1]}'
        )
    load, pack = (
        [transform for transform in pipeline if transform_name(transform).startswith(word)]
        for word in ('Load', 'Pack')
    )
    return [*load, dict(type='Resize', scale=(size[1], size[0]), keep_ratio=False), *pack]


def innermost_dataset(dataset: ConfigDict) -> ConfigDict:
    """Return the config inside data set wrappers such as RepeatDataset; of several data sets, the first."""
    while 'dataset' in dataset or 'datasets' in dataset:
        dataset = dataset['dataset'] if 'dataset' in dataset else dataset['datasets'][0]
    return dataset


def _with_pipeline(dataset: ConfigDict, pipeline: list[dict]) -> ConfigDict:
    """Return a data set's config with another pipeline and without wrappers of single data sets."""
    if 'dataset' in dataset:
        return _with_pipeline(dataset['dataset'], pipeline)
    if 'datasets' in dataset:
        parts = [_with_pipeline(part, pipeline) for part in dataset['datasets']]
        return ConfigDict(dataset, datasets=parts)
    return ConfigDict(dataset, pipeline=pipeline)
