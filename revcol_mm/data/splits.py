"""The data sets of a run, unwrapped, and the files of their samples."""

import os
from dataclasses import dataclass, field
from typing import Iterable, Sequence

from mmengine.evaluator import BaseMetric, Evaluator
from mmengine.registry import DATASETS
from torch import nn
from torch.utils.data import Dataset

from .coco_file import CocoFile
from .pipelines import dataset_name, innermost_datasets, transforms_of
from .samples import Sample


@dataclass
class Split:
    """An unwrapped data set of a run, and what it is used with.

    Args:
        name: 'train', 'val' or 'test'.
        dataset: The data set.
        files: Annotation files that were read to build it, by path.
        metrics: Key in the config, metric and config of each of its metrics.
        max_broken: Number of broken samples that training may leave out.
        model: The model, whose ``ignore_index`` is compared, if there is one.
        digests: File of each decoded image by the hash of its content.
    """

    name: str
    dataset: Dataset
    files: dict[str, CocoFile] = field(default_factory=dict)
    metrics: Sequence[tuple[str, BaseMetric, dict]] = ()
    max_broken: int = 0
    model: nn.Module | None = None
    digests: dict[bytes, str] = field(default_factory=dict)

    @property
    def where(self) -> str:
        """Name of the data set in messages."""
        name = dataset_name(self.dataset)
        return name if self.trains else f'{name} ({self.name})'

    @property
    def classes(self) -> Sequence[str]:
        return getattr(self.dataset, 'metainfo', {}).get('classes') or ()

    @property
    def file(self) -> CocoFile | None:
        """The annotation file, if pycocotools read it."""
        return self.files.get(getattr(self.dataset, 'ann_file', None))

    @property
    def trains(self) -> bool:
        return self.name == 'train'

    @property
    def has_folder_classes(self) -> bool:
        """Whether MMPretrain finds images and classes by listing folders."""
        return hasattr(self.dataset, 'folder_to_idx')

    @property
    def is_remote(self) -> bool:
        """Whether files are on storage that is not mounted, such as S3."""
        for each in (self.dataset, *transforms_of(self.dataset)):
            if (getattr(each, 'backend_args', None) or {}).get('backend', 'local') != 'local':
                return True
        prefix = getattr(self.dataset, 'data_prefix', None) or {}
        return any(
            '://' in str(folder) for folder in (prefix.values() if isinstance(prefix, dict) else [prefix])
        )

    def loads(self, kind: str) -> bool:
        """Whether the pipeline loads annotations of a kind, 'mask' (of objects) or 'seg'.

        A data set without a pipeline is assumed to load both.
        """
        if getattr(self.dataset, 'pipeline', None) is None:
            return True
        return any(getattr(each, f'with_{kind}', False) for each in transforms_of(self.dataset))

    def samples(self, indices: Iterable[int] | None = None, fast: bool = False) -> list[Sample]:
        """Return the samples, without reading their files.

        Args:
            indices: Indices of the samples. None returns all.
            fast: Whether to list all images of the annotation file instead, which may be more than those of
                the data set. For hundreds of thousands of images this saves seconds.
        """
        dataset, file = self.dataset, self.file
        prefix = getattr(dataset, 'data_prefix', None) or {}
        if file and (fast or len(dataset) == len(file.images)) and not prefix.get('seg'):
            images = list(file.images.values())
            return [
                Sample(os.path.join(prefix.get('img') or '', name), None, (width, height))
                for name, width, height in (images if indices is None else map(images.__getitem__, indices))
            ]
        if not hasattr(dataset, 'get_data_info'):
            return []
        with_masks = self.loads('seg')
        return [
            self._sample(dataset.get_data_info(index), with_masks)
            for index in (range(len(dataset)) if indices is None else indices)
        ]

    def _sample(self, info: dict, with_masks: bool) -> Sample:
        image, mask = info.get('img_path'), info.get('seg_map_path') if with_masks else None
        size = (info['width'], info['height']) if 'width' in info and 'height' in info else None
        label = info.get('gt_label')  # a list for several labels, which are not checked
        ids = None
        if with_masks and self.file and self.file.segments is not None:
            ids = self.file.segments.get(info['img_id'], frozenset())
        return Sample(
            image and str(image), mask and str(mask), size, label if isinstance(label, int) else None, ids
        )


def build_dataset(config: dict) -> Dataset:
    """Build a data set, with a clear error if it is empty.

    Raises:
        ValueError: If it has no images.
    """
    try:
        return DATASETS.build(config)
    except ValueError as error:
        if 'need at least one array' not in str(error):  # NumPy's error in MMEngine's serialization
            raise
        options = ', '.join(f'{key}={config.get(key)}' for key in ('filter_cfg', 'indices'))
        raise ValueError(
            f'{error}: no images are left: check {options}, and prefixes and suffixes of paths'
        ) from error


def splits_of(
    name: str,
    dataset: Dataset,
    evaluator: Evaluator | None = None,
    configs: Sequence[dict] | dict | None = None,
    model: nn.Module | None = None,
    files: dict[str, CocoFile] | None = None,
) -> list[Split]:
    """Return the unwrapped data sets of a dataloader.

    Args:
        name: 'train', 'val' or 'test'.
        dataset: The data set of the dataloader.
        evaluator: The evaluator of the loop, if it has one.
        configs: The config of the evaluator.
        model: The model, if it is built.
        files: Annotation files by path. By default those that the runner attached to the data set.
    """
    parts = [part for part, _ in innermost_datasets(dataset)]
    files = getattr(dataset, 'annotation_files', {}) if files is None else files
    metrics = []
    if len(parts) == 1:  # metrics on several data sets cannot be compared with one of them
        for index, metric in enumerate(getattr(evaluator, 'metrics', ())):
            is_list = isinstance(configs, list)
            config = configs[index] if is_list else configs
            key = f'{name}_evaluator' + (f'.{index}' if is_list else '')
            metrics.append((key, metric, config if isinstance(config, dict) else {}))
    max_broken = getattr(dataset, 'max_broken', 0)
    return [Split(name, part, files, metrics, max_broken, model) for part in parts]
