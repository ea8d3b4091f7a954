"""The hook that compares a run's data, model and config before the first iteration."""

import logging
from pathlib import Path

import numpy as np
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.registry import HOOKS
from mmengine.runner import BaseLoop, Runner
from PIL import ExifTags, Image
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.utils.data import Dataset

from .channels import check_images, check_normalisation
from .errors import PreflightError
from .ignore_label import check_ignore_label
from .metrics import check_metrics
from .model import check_batch_norm, check_channels, check_class_weights, check_num_classes
from .schedule import check_length, check_schedule
from .sliding_windows import check_sliding_windows

NUM_SAMPLED_MASKS = 50
IGNORE_INDEX = 255  # MMSegmentation's default


def _image_size(path: str, unreadable: tuple[int, int]) -> tuple[int, int]:
    """Width and height of an image as OpenMMLab reads it, which turns it as its EXIF data say."""
    try:
        with Image.open(path) as image:
            turned = image.getexif().get(ExifTags.Base.Orientation, 1) >= 5
            return image.size[::-1] if turned else image.size
    except OSError:  # training may leave it out
        return unreadable


@HOOKS.register_module()
class PreflightHook(Hook):
    """Compare the data, model, evaluators and schedule of a run with each other before the first iteration.

    Raises:
        PreflightError: If a data set is empty, a class of a COCO-style data set has no category in its file,
            one of 50 evenly spaced segmentation masks cannot be read, has another size than its image,
            several channels, or a label beyond the classes; if the model's wrapper does not let it train
            reversibly; or as the other files of :mod:`revcol_mm.preflight` say.
    """

    priority = 'VERY_HIGH'

    def before_run(self, runner: Runner) -> None:
        check_length(runner.cfg.get('train_cfg') or {})
        self._check_wrapper(runner.model)
        check_channels(runner.model, runner.cfg.get('model'))
        check_class_weights(runner.model)
        check_normalisation(runner.model)
        check_sliding_windows(runner.model)
        for loop in (runner._train_loop, runner._val_loop, runner._test_loop):
            dataset = getattr(getattr(loop, 'dataloader', None), 'dataset', None)
            if dataset is not None:
                self._check(runner, dataset)
                check_images(dataset, runner.model)
                metrics = getattr(getattr(loop, 'evaluator', None), 'metrics', [])
                check_ignore_label(dataset, runner.model, metrics)
        check_metrics(runner)
        if isinstance(runner._train_loop, BaseLoop):  # not in testing
            check_schedule(runner)
            check_batch_norm(runner)

    @staticmethod
    def _check_wrapper(model: nn.Module) -> None:
        """Reversible training would find out too, but only in the first backward pass."""
        for module in model.modules():
            if isinstance(module, (nn.DataParallel, FullyShardedDataParallel)):
                if any(getattr(part, 'save_memory', False) for part in module.modules()):
                    raise PreflightError(
                        f'save_memory=True does not work in {type(module).__name__}, which hides parameters: '
                        'use MMDistributedDataParallel, or FullyShardedRunner'
                    )

    def _check(self, runner: Runner, dataset: Dataset) -> None:
        while hasattr(dataset, 'dataset'):
            dataset = dataset.dataset
        for part in getattr(dataset, 'datasets', ()):
            self._check(runner, part)
        name = f'{type(dataset).__name__} at {getattr(dataset, "data_root", "?")}'
        if len(dataset) == 0:
            raise PreflightError(f'{name} has no images (left)')
        classes = getattr(dataset, 'metainfo', {}).get('classes')
        if not classes:
            return
        check_num_classes(runner.model, name, dataset.metainfo)
        found = getattr(dataset, 'cat_ids', None)
        if found is not None and len(found) != len(classes):
            raise PreflightError(
                f'{name}: of {len(classes)} classes only {len(found)} are categories of its annotation '
                f'file; set metainfo=dict(classes=...) to the names there'
            )
        others = set(getattr(dataset, 'cat_img_map', ())) - set(found or ())
        if others:
            print_log(
                f'{name}: {len(others)} categories of its annotation file are none of the classes; their '
                'objects are left out',
                'current',
                level=logging.WARNING,
            )
        if hasattr(dataset, 'reduce_zero_label') and getattr(dataset, 'label_map', None) is None:
            self._check_masks(name, dataset, len(classes))

    @staticmethod
    def _check_masks(name: str, dataset: Dataset, num_classes: int) -> None:
        for index in np.linspace(0, len(dataset) - 1, NUM_SAMPLED_MASKS).astype(int):
            info = dataset.get_data_info(index)
            path, image_path = info.get('seg_map_path'), info.get('img_path')
            if path is None or not Path(path).is_file():
                continue
            try:
                with Image.open(path) as mask:
                    labels, size, channels = (
                        np.unique(np.asarray(mask)).astype(int),
                        mask.size,
                        mask.getbands(),
                    )
            except OSError as error:
                raise PreflightError(f'{name}: {path} is broken: {error}') from error
            if len(channels) > 1:
                raise PreflightError(f'{name}: {path} has {len(channels)} channels, a mask has one')
            if image_path and Path(image_path).is_file() and size != (own := _image_size(image_path, size)):
                raise PreflightError(
                    f'{name}: {path} has {size[0]} x {size[1]} pixels, its image {own[0]} x {own[1]}'
                )
            if dataset.reduce_zero_label:
                labels = np.where((labels == 0) | (labels == IGNORE_INDEX), IGNORE_INDEX, labels - 1)
            ignored = getattr(dataset, 'ignore_index', IGNORE_INDEX)
            beyond = labels[(labels >= num_classes) & (labels != ignored)]
            if len(beyond):
                raise PreflightError(
                    f'{name}: {path} has label {beyond.max()}'
                    f'{" (after reduce_zero_label)" if dataset.reduce_zero_label else ""}, '
                    f'but there are {num_classes} classes, 0 to {num_classes - 1}'
                )
