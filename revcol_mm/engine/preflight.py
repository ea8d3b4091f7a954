"""Checks that find, before a run starts, what would otherwise fail hours into it."""

import difflib
import inspect
import os
from pathlib import Path
from typing import Any, Iterator

import numpy as np
from mmengine.config import Config, ConfigDict
from mmengine.hooks import Hook
from mmengine.registry import HOOKS, Registry, init_default_scope
from mmengine.runner import Runner
from PIL import Image
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.utils.data import Dataset

from revcol_mm.models.checkpoint import OTHER_STORE, local_checkpoint

NUM_SAMPLED_MASKS = 50
IGNORE_INDEX = 255  # MMSegmentation's default


def merge_options(cfg: Config, options: dict[str, Any]) -> None:
    """Merge ``--cfg-options`` into a config, in place.

    Raises:
        ValueError: If a key is neither in the config nor an argument of what the config builds there.
    """
    types = {key: value for key, value in options.items() if key.endswith('.type')}
    for part in (types, options):  # a new type has arguments of its own
        for key in part:
            _check_option(cfg, key)
        cfg.merge_from_dict(part)


def _check_option(cfg: Config, key: str) -> None:
    node: Any = cfg
    parts = key.split('.')
    for depth, part in enumerate(parts):
        if isinstance(node, (list, tuple)) and part.isdigit() and int(part) < len(node):
            node = node[int(part)]
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
        if not path.is_file() or path.stat().st_size == 0:
            yield f'no annotation file {path}, or it is empty'
    prefix = dataset.get('data_prefix') or {}
    for folder in prefix.values() if isinstance(prefix, dict) else [prefix]:
        path = root / (folder or '')
        if not path.is_dir():
            yield f'no data folder {path}'
        elif not any(path.iterdir()):
            yield f'data folder {path} is empty'


class PreflightError(ValueError):
    """The data and the model of a run do not fit each other."""


@HOOKS.register_module()
class PreflightHook(Hook):
    """Compare the data sets of a run with its model, and that with its wrapper, before the first iteration.

    Raises:
        PreflightError: If a data set is empty, a head's ``num_classes`` is not its number of classes, a class
            of a COCO-style data set has no category in its file, a label of one of 50 evenly spaced
            segmentation masks is beyond the classes, or the model's wrapper does not let it train reversibly.
    """

    priority = 'VERY_HIGH'

    def before_run(self, runner: Runner) -> None:
        self._check_wrapper(runner.model)
        for loop in (runner._train_loop, runner._val_loop, runner._test_loop):
            dataset = getattr(getattr(loop, 'dataloader', None), 'dataset', None)
            if dataset is not None:
                self._check(runner, dataset)

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
        if hasattr(dataset, 'reduce_zero_label') and getattr(dataset, 'label_map', None) is None:
            self._check_masks(name, dataset, len(classes))

    @staticmethod
    def _check_masks(name: str, dataset: Dataset, num_classes: int) -> None:
        for index in np.linspace(0, len(dataset) - 1, NUM_SAMPLED_MASKS).astype(int):
            path = dataset.get_data_info(index).get('seg_map_path')
            if path is None or not Path(path).is_file():
                continue
            labels = np.unique(np.asarray(Image.open(path))).astype(int)
            if dataset.reduce_zero_label:
                labels = np.where((labels == 0) | (labels == IGNORE_INDEX), IGNORE_INDEX, labels - 1)
            beyond = labels[(labels >= num_classes) & (labels != IGNORE_INDEX)]
            if len(beyond):
                raise PreflightError(
                    f'{name}: {path} has label {beyond.max()}'
                    f'{" (after reduce_zero_label)" if dataset.reduce_zero_label else ""}, '
                    f'but there are {num_classes} classes, 0 to {num_classes - 1}'
                )
