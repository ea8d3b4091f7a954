"""Check that the files and folders that a config names exist, before anything is built."""

import os
from pathlib import Path
from typing import Any, Iterator

from mmengine.config import Config, ConfigDict

from revcol_mm.checkpoints.sources import is_remote, local_checkpoint
from revcol_mm.config.unsafe_files import find_unsafe_files, unsafe_format

DOWNLOADED = ('CIFAR10', 'CIFAR100', 'FashionMNIST', 'MNIST')  # by MMPretrain, if they are missing


def check_files(cfg: Config, loaders: tuple[str, ...], evaluators: bool = True) -> None:
    """Check that the data of dataloaders and evaluators exist, and the checkpoints that training starts from.

    Args:
        cfg: The whole config.
        loaders: Names of the dataloaders that will be used, such as 'train_dataloader'.
        evaluators: Whether their evaluators will be used, too.

    Raises:
        FileNotFoundError: With one line for each missing folder or file, and for each file that may run code
            when it is read.
    """
    problems = missing_data(cfg, loaders, evaluators)
    names = [loader.replace('_dataloader', '_evaluator') for loader in loaders] if evaluators else []
    for name in ('model', *loaders, *names):
        for place, problem in find_unsafe_files(cfg.get(name), name):
            problems.setdefault(problem, []).append(place)
    if problems:
        raise FileNotFoundError(
            '\n'.join(f'{problem} ({", ".join(places)})' for problem, places in problems.items())
        )
    init_cfgs = cfg.model.get('backbone', {}).get('init_cfg') or []
    rank = os.environ.get('RANK') or os.environ.get('SLURM_PROCID') or '0'
    if 'train_dataloader' in loaders and rank == '0':  # one process downloads for all
        for init_cfg in init_cfgs if isinstance(init_cfgs, (list, tuple)) else [init_cfgs]:
            if init_cfg.get('type') == 'Pretrained' and not is_remote(init_cfg['checkpoint']):
                local_checkpoint(init_cfg['checkpoint'])
        load_from = cfg.get('load_from')
        if load_from and not cfg.get('resume') and not is_remote(load_from):
            local_checkpoint(load_from, 'load_from')


def missing_data(cfg: Config, loaders: tuple[str, ...], evaluators: bool = True) -> dict[str, list[str]]:
    """Return a message for each missing file or folder, with the places in the config that name it.

    Args:
        cfg, loaders, evaluators: See :func:`check_files`.
    """
    problems = {}
    for loader in loaders:
        for place, dataset in dataset_configs(cfg.get(loader), loader):
            for problem in _missing_files(dataset):
                problems.setdefault(problem, []).append(place)
        for place, evaluator in _evaluator_configs(cfg, loader) if evaluators else ():
            for key, what in (('ann_file', 'annotation file'), ('seg_prefix', 'data folder')):
                path = evaluator.get(key)
                if not path or _is_on_remote_storage(evaluator, path) or unsafe_format(str(path)):
                    continue
                if not os.path.exists(path):
                    problems.setdefault(f'no {what} {path}', []).append(f'{place}.{key}')
    return problems


def dataset_configs(node: Any, place: str) -> Iterator[tuple[str, ConfigDict]]:
    """Yield every data set's config inside of a dataloader's, and its place, also inside of wrappers."""
    if not isinstance(node, dict):
        return
    for key in ('dataset', 'datasets'):
        children = node.get(key, [])
        for child in children if isinstance(children, (list, tuple)) else [children]:
            yield from dataset_configs(child, f'{place}.{key}')
    if 'data_root' in node or 'ann_file' in node or 'data_prefix' in node:
        yield place, node


def _evaluator_configs(cfg: Config, loader: str) -> Iterator[tuple[str, ConfigDict]]:
    name = f'{loader.removesuffix("_dataloader")}_evaluator'
    evaluators = cfg.get(name)
    if isinstance(evaluators, dict):
        yield name, evaluators
    for index, evaluator in enumerate(evaluators if isinstance(evaluators, list | tuple) else ()):
        if isinstance(evaluator, dict):
            yield f'{name}.{index}', evaluator


def _is_on_remote_storage(config: ConfigDict, path: str | None) -> bool:
    return '://' in str(path) or (config.get('backend_args') or {}).get('backend', 'local') != 'local'


def _missing_files(dataset: ConfigDict) -> Iterator[str]:
    """Yield a message for each missing or empty file or folder of a data set."""
    if _is_on_remote_storage(dataset, dataset.get('data_root')):
        return
    if str(dataset.get('type')).rpartition('.')[2] in DOWNLOADED and dataset.get('download', True):
        return
    root = Path(dataset.get('data_root') or '')
    if not root.is_dir():
        yield f'no data folder {root}'
        return
    ann_file = dataset.get('ann_file')
    if ann_file:
        path = root / ann_file
        if unsafe_format(str(ann_file)) is None and (not path.is_file() or path.stat().st_size == 0):
            yield f'no annotation file {path}, or it is empty'
    prefix = dataset.get('data_prefix') or {}
    for folder in prefix.values() if isinstance(prefix, dict) else [prefix]:
        path = root / (folder or '')
        if not path.is_dir():
            yield f'no data folder {path}'
        elif not any(path.iterdir()):
            yield f'data folder {path} is empty'
    default = '.jpg' if dataset.get('type') == 'BaseSegDataset' else None
    suffix = dataset.get('img_suffix', default)
    folder = root / ((prefix.get('img_path') if isinstance(prefix, dict) else None) or '')
    if suffix and not ann_file and folder.is_dir():
        files = [name for _, _, names in os.walk(folder) for name in names]
        if files and not any(name.endswith(suffix) for name in files):
            yield f'no file in {folder} ends in {suffix!r} (img_suffix); there is {min(files)}'
