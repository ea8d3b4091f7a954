"""Checks that find, before a run starts, what would otherwise fail hours into it."""

import difflib
import inspect
import logging
import os
import traceback
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Iterator

import numpy as np
from mmengine.config import Config, ConfigDict
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.registry import HOOKS, Registry, init_default_scope
from mmengine.runner import Runner
from PIL import ExifTags, Image
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.utils.data import DataLoader, Dataset

from revcol_mm.models import RevCol
from revcol_mm.models.checkpoint import OTHER_STORE, CheckpointError, local_checkpoint

NUM_SAMPLED_MASKS = 50
IGNORE_INDEX = 255  # MMSegmentation's default


def merge_options(cfg: Config, options: dict[str, Any]) -> None:
    """Merge ``--cfg-options`` into a config, in place.

    Raises:
        ValueError: If a key is neither in the config nor an argument of what the config builds there, or an
            element of a list, which MMEngine merges only if it is a dict.
    """
    types = {key: value for key, value in options.items() if key.endswith('.type')}
    for part in (types, options):  # a new type has arguments of its own
        for key, value in part.items():
            _check_option(cfg, key, value)
        cfg.merge_from_dict(part)


def _check_option(cfg: Config, key: str, value: Any) -> None:
    node: Any = cfg
    parts = key.split('.')
    for depth, part in enumerate(parts):
        if isinstance(node, (list, tuple)) and part.isdigit() and int(part) < len(node):
            node = node[int(part)]
            if depth == len(parts) - 1 and not (isinstance(node, dict) and isinstance(value, dict)):
                raise ValueError(f'--cfg-options {key}: an element cannot be replaced; give the whole list')
            continue
        if not isinstance(node, dict | Config):
            raise ValueError(f'--cfg-options {key}: {".".join(parts[:depth])} is {node!r}, not a dict')
        if part in node:
            node = node[part]
            continue
        known = set(node)
        if depth == 0:
            known |= set(inspect.signature(Runner.__init__).parameters) | {
                'compile',
                'model_wrapper_cfg',
                'runner_type',
            }
        elif 'type' in node:
            known |= _arguments(cfg, node['type'])
        elif depth == 1 and parts[0].endswith('_dataloader'):
            known |= set(inspect.signature(DataLoader.__init__).parameters) - {'self', 'dataset'}
            known |= {'max_broken'} if parts[0] == 'train_dataloader' else set()
        elif parts[:depth] == ['default_hooks'] and parts[depth + 1 :] == ['type']:
            return  # one more hook
        if part in known:
            return  # a new value, which may itself be a dict
        close = difflib.get_close_matches(part, known, n=3) or sorted(known - {'type'})
        where = '.'.join(parts[:depth]) or 'the config'
        raise ValueError(f'--cfg-options {key}: {where} has no {part!r}; it has {", ".join(close)}')


def _arguments(cfg: Config, type_name: Any) -> set[str]:
    """Names of the arguments of a registered class, inherited ones that it passes on included."""
    cls = type_name if inspect.isclass(type_name) else _find_class(cfg, type_name)
    names = set()
    for base in inspect.getmro(cls) if cls else ():
        if '__init__' not in vars(base) or base is object:
            continue
        parameters = inspect.signature(base.__init__).parameters.values()
        names |= {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    return names - {'self'}


def _find_class(cfg: Config, type_name: str) -> type | None:
    """Look a name up in all of MMEngine's registries, from the config's scope."""
    import mmengine.registry

    scope = cfg.get('default_scope', 'mmengine')
    init_default_scope(scope)
    for registry in vars(mmengine.registry).values():
        if isinstance(registry, Registry):
            with registry.switch_scope_and_registry(scope) as scoped:
                found = scoped.get(type_name)
            if inspect.isclass(found):
                return found
    return None


def check_scope(cfg: Config) -> None:
    """Check that the config says which package its models come from.

    Raises:
        ValueError: If ``default_scope`` is missing or none of those that have tasks.
    """
    scopes = ('mmseg', 'mmdet', 'mmpretrain')
    scope = cfg.get('default_scope')
    if scope not in scopes:
        raise ValueError(
            f'{cfg.filename}: default_scope is {scope!r}; set it to one of {", ".join(scopes)}, '
            'the package that the model comes from'
        )


def check_files(cfg: Config, loaders: tuple[str, ...]) -> None:
    """Check that the data that dataloaders name exist and that checkpoints to start from can be had.

    Args:
        cfg: The whole config.
        loaders: Names of the dataloaders that will be used, such as 'train_dataloader'.

    Raises:
        FileNotFoundError: With every missing folder or file, one a line.
    """
    problems = {}
    for loader in loaders:
        for place, dataset in _dataset_configs(cfg.get(loader), loader):
            for problem in _missing_data(dataset):
                problems.setdefault(problem, []).append(place)
    if problems:
        raise FileNotFoundError(
            '\n'.join(f'{problem} ({", ".join(places)})' for problem, places in problems.items())
        )
    init_cfg = cfg.model.get('backbone', {}).get('init_cfg') or {}
    rank = os.environ.get('RANK') or os.environ.get('SLURM_PROCID') or '0'  # one process fetches for all
    if 'train_dataloader' in loaders and rank == '0':
        if init_cfg.get('type') == 'Pretrained':
            local_checkpoint(init_cfg['checkpoint'])
        load_from = cfg.get('load_from')
        if load_from and not cfg.get('resume') and not OTHER_STORE.match(load_from):
            local_checkpoint(load_from, 'load_from')


def _dataset_configs(node: Any, place: str) -> Iterator[tuple[str, ConfigDict]]:
    """Every dataset's config below a dataloader's, inside of wrappers such as RepeatDataset too."""
    if not isinstance(node, dict):
        return
    for key in ('dataset', 'datasets'):
        children = node.get(key, [])
        for child in children if isinstance(children, (list, tuple)) else [children]:
            yield from _dataset_configs(child, f'{place}.{key}')
    if 'data_root' in node or 'ann_file' in node or 'data_prefix' in node:
        yield place, node


def _missing_data(dataset: ConfigDict) -> Iterator[str]:
    if dataset.get('backend_args') and dataset['backend_args'].get('backend', 'local') != 'local':
        return  # on a remote store, which only its own client can see
    root = Path(dataset.get('data_root') or '')
    if not root.is_dir():
        yield f'no data folder {root}'
        return
    ann_file = dataset.get('ann_file')
    if ann_file:
        path = root / ann_file
        if path.suffix in ('.pkl', '.pickle'):
            yield f'annotation file {path} is a pickle, which may run code: convert it to JSON'
        elif not path.is_file() or path.stat().st_size == 0:
            yield f'no annotation file {path}, or it is empty'
    prefix = dataset.get('data_prefix') or {}
    for folder in prefix.values() if isinstance(prefix, dict) else [prefix]:
        path = root / (folder or '')
        if not path.is_dir():
            yield f'no data folder {path}'
        elif not any(path.iterdir()):
            yield f'data folder {path} is empty'


def _image_size(path: str, unreadable: tuple[int, int]) -> tuple[int, int]:
    """Width and height of an image as OpenMMLab reads it, which turns it as its EXIF data say."""
    try:
        with Image.open(path) as image:
            turned = image.getexif().get(ExifTags.Base.Orientation, 1) >= 5
            return image.size[::-1] if turned else image.size
    except OSError:  # training may leave it out
        return unreadable


class PreflightError(ValueError):
    """The data and the model of a run do not fit each other, or one of them cannot be built."""


@contextmanager
def building(what: str) -> Iterator[None]:
    """Say what could not be built of a config, why and where, instead of whatever its code raises.

    Raises:
        PreflightError: If anything but one of this package's own errors is raised.
    """
    try:
        yield
    except (PreflightError, CheckpointError):
        raise
    except Exception as error:  # of a class that the config names
        place = traceback.extract_tb(error.__traceback__)[-1]
        reason = ' '.join(f'{type(error).__name__}: {error}'.split())
        raise PreflightError(
            f'cannot build {what}: {reason} ({Path(place.filename).name}:{place.lineno})'
        ) from error


@HOOKS.register_module()
class PreflightHook(Hook):
    """Compare the data sets of a run with its model, and that with its wrapper, before the first iteration.

    Raises:
        PreflightError: If there is not one iteration to train; a data set is empty, a head's ``num_classes``
            is not its number of classes, a class of a COCO-style data set has no category in its file, one of
            50 evenly spaced segmentation masks cannot be read, has another size than its image, several
            channels, or a label beyond the classes; if a neck or a head has other ``in_channels`` than a
            RevCol gives, or the model's wrapper does not let it train reversibly.
    """

    priority = 'VERY_HIGH'

    def before_run(self, runner: Runner) -> None:
        self._check_length(runner)
        self._check_wrapper(runner.model)
        self._check_channels(runner)
        for loop in (runner._train_loop, runner._val_loop, runner._test_loop):
            dataset = getattr(getattr(loop, 'dataloader', None), 'dataset', None)
            if dataset is not None:
                self._check(runner, dataset)

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
            beyond = labels[(labels >= num_classes) & (labels != IGNORE_INDEX)]
            if len(beyond):
                raise PreflightError(
                    f'{name}: {path} has label {beyond.max()}'
                    f'{" (after reduce_zero_label)" if dataset.reduce_zero_label else ""}, '
                    f'but there are {num_classes} classes, 0 to {num_classes - 1}'
                )
