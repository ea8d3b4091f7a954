"""Files and folders that a config names, looked for before anything is built."""

import os
from pathlib import Path
from typing import Any, Iterator

from mmengine.config import Config, ConfigDict

from revcol_mm.models.checkpoint import is_remote, local_checkpoint


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
        if init_cfg.get('type') == 'Pretrained' and not is_remote(init_cfg['checkpoint']):
            local_checkpoint(init_cfg['checkpoint'])
        load_from = cfg.get('load_from')
        if load_from and not cfg.get('resume') and not is_remote(load_from):
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
