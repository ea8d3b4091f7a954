"""Images of a config's data sets, all of one size, with labels that lie on them; for analyses.

Letters: B images, H and W their size, K classes.
"""

from pathlib import Path
from typing import Any, Iterator, NamedTuple, Sequence

import torch
from mmengine.config import Config, ConfigDict
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from torch import Tensor
from torch.nn import functional as F

from revcol_mm.data.pipelines import ignore_index
from revcol_mm.evaluation.confusion import BACKGROUND
from revcol_mm.preflight import check_files

LABEL_STRIDE = 4  # of dense labels: that of level 0
COARSEST_STRIDE = 32  # of features; sizes are multiples of it
UNLABELLED = -1


class Batch(NamedTuple):
    """A batch of images.

    Args:
        data: What the loader gives and a data preprocessor takes.
        images: Pixels, (B, C, H, W), channels in the data set's order; of 8 bits from 0 to 1.
        labels: Class of every image, (B,); for detection and segmentation of every LABEL_STRIDE x
            LABEL_STRIDE pixels, (B, H / 4, W / 4). UNLABELLED where there is none.
    """

    data: dict[str, Any]
    images: Tensor
    labels: Tensor


class LabelledImages:
    """Batches of a data set's images, without augmentation.

    Detection and segmentation: images are read as in testing, then brought to one size, annotations with
    them. The label of a detection data set's pixel is the class of the smallest box around it; without a box
    it is one class more, 'background'. Classification: images are as in testing, unless a size is given.

    Args:
        cfg: The config.
        split: 'train', 'val' or 'test': whose dataloader's data set it is.
        batch_size: Images in a batch, B.
        size: H and W. None: what :func:`testing_size` says.
        num_images: Use no more than so many. None: all.
        seed: Seed of the order. None: the data set's own order.
        drop_last: Leave out an incomplete last batch.

    Raises:
        FileNotFoundError: If data are missing.
        ValueError: If the split has no data, the size does not fit, there is not one batch, its classes have
            no names, or, later, an image to classify has several classes.
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
            raise ValueError(f'{cfg.filename} has no {split}_dataloader, or no test_dataloader to read as')
        if batch_size < 1 or (num_images is not None and num_images < 1):
            raise ValueError(f'batch size and number of images start at 1, got {batch_size}, {num_images}')
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
                f'the {split} split has {len(self.loader.dataset)} images to use, a batch has {batch_size}'
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
        """Every image once, in another order in every epoch if there is a seed."""
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
                raise ValueError(f'images have one class each, but {len(samples)} have {len(labels)}')
            return labels
        centres = slice(LABEL_STRIDE // 2, None, LABEL_STRIDE)
        return torch.stack([self._label_map(sample, size)[centres, centres] for sample in samples])

    def _label_map(self, sample: Any, size: torch.Size) -> Tensor:
        """Class of every pixel, (H, W)."""
        if 'gt_sem_seg' in sample:
            labels = sample.gt_sem_seg.data[0].long()
            return labels.masked_fill(labels == ignore_index(self.loader.dataset), UNLABELLED)
        boxes = sample.gt_instances.bboxes
        boxes = getattr(boxes, 'tensor', boxes)  # MMDetection's box types hold one
        areas = (boxes[:, 2:] - boxes[:, :2]).prod(1)
        labels = torch.full(tuple(size), len(self.classes) - 1)
        for index in areas.argsort(descending=True):  # smaller ones over larger ones
            left, top, right, bottom = boxes[index].round().long().clamp(min=0).tolist()
            labels[top:bottom, left:right] = sample.gt_instances.labels[index]
        return labels


def label_shares(labels: Tensor, num_classes: int) -> Tensor:
    """Which share of an image, or of each of its cells of COARSEST_STRIDE pixels, every class has.

    Args:
        labels: As in a :class:`Batch`.
        num_classes: Classes K.

    Returns:
        (B, K), one-hot, for labels of images, (B, K, H / 32, W / 32) for dense ones. Pixels without a label
        have no class.
    """
    shares = F.one_hot(labels.clamp(min=0), num_classes) * (labels != UNLABELLED).unsqueeze(-1)
    if labels.ndim == 1:
        return shares.float()
    return F.avg_pool2d(shares.movedim(-1, 1).float(), COARSEST_STRIDE // LABEL_STRIDE)


def testing_size(cfg: Config) -> tuple[int, int]:
    """A square as large as the shorter side to which a detector's or segmentor's config scales test images.

    Its side is the nearest multiple of COARSEST_STRIDE.

    Raises:
        ValueError: If it does not scale them.
    """
    for transform in innermost_dataset(cfg.test_dataloader.dataset).pipeline:
        scale = transform.get('scale')
        if 'Resize' in transform_name(transform) and isinstance(scale, (tuple, list)):
            return (max(round(min(scale) / COARSEST_STRIDE), 1) * COARSEST_STRIDE,) * 2
    raise ValueError(f'{Path(cfg.filename).name}: test images are not scaled to one size; give a size')


def _fixed_size(cfg: Config, size: Sequence[int] | None) -> list[dict]:
    """The test pipeline, cut down to reading, scaling and packing."""
    pipeline = innermost_dataset(cfg.test_dataloader.dataset).pipeline
    if size is None:
        if cfg.default_scope == 'mmpretrain':
            return pipeline
        size = testing_size(cfg)
    if any(side < COARSEST_STRIDE or side % COARSEST_STRIDE for side in size):
        raise ValueError(f'height and width are multiples of {COARSEST_STRIDE}, got {size[0]} and {size[1]}')
    read, pack = (
        [transform for transform in pipeline if transform_name(transform).startswith(word)]
        for word in ('Load', 'Pack')
    )
    return [*read, dict(type='Resize', scale=(size[1], size[0]), keep_ratio=False), *pack]


def transform_name(transform: dict) -> str:
    """Name of a pipeline's transform, whose type is a name or a class."""
    return transform['type'] if isinstance(transform['type'], str) else transform['type'].__name__


def innermost_dataset(dataset: ConfigDict) -> ConfigDict:
    """Config of the data set in wrappers that repeat, balance or mix; of several, the first."""
    while 'dataset' in dataset or 'datasets' in dataset:
        dataset = dataset['dataset'] if 'dataset' in dataset else dataset['datasets'][0]
    return dataset


def _with_pipeline(dataset: ConfigDict, pipeline: list[dict]) -> ConfigDict:
    """A data set's config with another pipeline, out of wrappers that repeat, balance or mix."""
    if 'dataset' in dataset:
        return _with_pipeline(dataset['dataset'], pipeline)
    if 'datasets' in dataset:
        parts = [_with_pipeline(part, pipeline) for part in dataset['datasets']]
        return ConfigDict(dataset, datasets=parts)
    return ConfigDict(dataset, pipeline=pipeline)
