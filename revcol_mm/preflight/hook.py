"""The hook that compares a run's data, model and config before the first iteration."""

import logging
from pathlib import Path

import numpy as np
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from PIL import ExifTags, Image
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.utils.data import Dataset

from revcol_mm.models import RevCol

from .channels import check_images, check_normalisation
from .errors import PreflightError
from .ignore_label import check_ignore_label
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
    """Compare the data sets of a run with its model, and that with its wrapper, before the first iteration.

    Raises:
        PreflightError: If there is not one iteration to train; a data set is empty, a head's ``num_classes``
            is not its number of classes, a class of a COCO-style data set has no category in its file, one of
            50 evenly spaced segmentation masks cannot be read, has another size than its image, several
            channels, or a label beyond the classes; if a neck or a head has other ``in_channels`` than a
            RevCol gives, or the model's wrapper does not let it train reversibly. And see
            :mod:`revcol_mm.preflight.channels`, :mod:`revcol_mm.preflight.ignore_label` and
            :mod:`revcol_mm.preflight.sliding_windows`.
    """

    priority = 'VERY_HIGH'

    def before_run(self, runner: Runner) -> None:
        self._check_length(runner)
        self._check_wrapper(runner.model)
        self._check_channels(runner)
        check_normalisation(runner.model)
        check_sliding_windows(runner.model)
        for loop in (runner._train_loop, runner._val_loop, runner._test_loop):
            dataset = getattr(getattr(loop, 'dataloader', None), 'dataset', None)
            if dataset is not None:
                self._check(runner, dataset)
                check_images(dataset, runner.model)
                metrics = getattr(getattr(loop, 'evaluator', None), 'metrics', [])
                check_ignore_label(dataset, runner.model, metrics)

    @staticmethod
    def _check_length(runner: Runner) -> None:
        """MMEngine would end without a word, or validate never."""
        for key in ('max_iters', 'max_epochs', 'val_interval'):
            value = (runner.cfg.get('train_cfg') or {}).get(key)
            if value is not None and (not isinstance(value, int) or value < 1):
                raise PreflightError(f'train_cfg.{key} takes a whole number from 1 on, got {value!r}')

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

    @staticmethod
    def _check_channels(runner: Runner) -> None:
        """The forward pass would find out too, but not say which number of the config is wrong."""
        backbones = [module for module in runner.model.modules() if isinstance(module, RevCol)]
        cfg = runner.cfg.get('model')
        cfg = cfg.get('module', cfg) if isinstance(cfg, dict) else {}  # under test-time augmentation
        if len(backbones) != 1:
            return
        given = backbones[0].out_channels
        names = ['neck'] if cfg.get('neck') else ['decode_head', 'auxiliary_head']
        for name in names:
            part = cfg.get(name)
            wanted = part.get('in_channels') if isinstance(part, dict) else None
            if wanted is None:
                continue
            index = part.get('in_index', range(len(wanted)) if isinstance(wanted, (list, tuple)) else -1)
            if isinstance(index, int):
                wanted, index = [wanted], [index]
            inside = all(-len(given) <= i < len(given) for i in index)
            channels = [given[i] for i in index] if inside else list(given)
            if list(wanted) != channels:
                raise PreflightError(
                    f'model.{name}.in_channels is {list(wanted)}, but the backbone gives {channels}'
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
        heads = [
            (head, module)
            for head, module in runner.model.named_modules()
            if head.split('.')[-1].endswith('head') and 'rpn' not in head
        ]
        for head, module in heads or [
            (type(runner.model).__name__, runner.model)
        ]:  # or one with plain layers
            num_classes = getattr(module, 'num_classes', None)
            if isinstance(num_classes, int) and num_classes != len(classes):
                raise PreflightError(
                    f'{head} of the model has num_classes={num_classes}, {name} has {len(classes)} classes'
                )
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
