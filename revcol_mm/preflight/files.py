"""Files and folders that a config names, looked for before anything is built."""

import os
from pathlib import Path
from typing import Any, Iterator

from mmengine.config import Config, ConfigDict

from revcol_mm.models.checkpoint import OTHER_STORE, local_checkpoint


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
    """Check that data that dataloaders and their evaluators name exist, and checkpoints to start from.

    Args:
        cfg: The whole config.
        loaders: Names of the dataloaders that will be used, such as 'train_dataloader'.

    Raises:
        FileNotFoundError: With every missing folder or file, one a line.
    """
    problems = missing_data(cfg, loaders)
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


def missing_data(cfg: Config, loaders: tuple[str, ...]) -> dict[str, list[str]]:
    """What is not there of the data that dataloaders and their evaluators name, and where each is named."""
    problems = {}
    for loader in loaders:
        for place, dataset in dataset_configs(cfg.get(loader), loader):
            for problem in _missing_data(dataset):
                problems.setdefault(problem, []).append(place)
        for place, evaluator in _evaluator_configs(cfg, loader):
            for key, what in (('ann_file', 'annotation file'), ('seg_prefix', 'data folder')):
                path = evaluator.get(key)
                if path and not _is_remote(evaluator, path) and not os.path.exists(path):
                    problems.setdefault(f'no {what} {path}', []).append(f'{place}.{key}')
    return problems


def _evaluator_configs(cfg: Config, loader: str) -> Iterator[tuple[str, ConfigDict]]:
    name = f'{loader.removesuffix("_dataloader")}_evaluator'
    evaluators = cfg.get(name)
    if isinstance(evaluators, dict):
        yield name, evaluators
    for index, evaluator in enumerate(evaluators if isinstance(evaluators, list | tuple) else ()):
        if isinstance(evaluator, dict):
            yield f'{name}.{index}', evaluator


def _is_remote(config: ConfigDict, path: str = '') -> bool:
    """Whether files are on a store that only its own client can see."""
    return '://' in str(path) or (config.get('backend_args') or {}).get('backend', 'local') != 'local'


def dataset_configs(node: Any, place: str) -> Iterator[tuple[str, ConfigDict]]:
    """Every dataset's config below a dataloader's, inside of wrappers such as RepeatDataset too."""
    if not isinstance(node, dict):
        return
    for key in ('dataset', 'datasets'):
        children = node.get(key, [])
        for child in children if isinstance(children, (list, tuple)) else [children]:
            yield from dataset_configs(child, f'{place}.{key}')
    if 'data_root' in node or 'ann_file' in node or 'data_prefix' in node:
        yield place, node


def _missing_data(dataset: ConfigDict) -> Iterator[str]:
    if _is_remote(dataset):
        return
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
    default = '.jpg' if dataset.get('type') == 'BaseSegDataset' else None
    suffix = dataset.get('img_suffix', default)
    folder = root / ((prefix.get('img_path') if isinstance(prefix, dict) else None) or '')
    if suffix and not ann_file and folder.is_dir():
        files = [name for _, _, names in os.walk(folder) for name in names]
        if files and not any(name.endswith(suffix) for name in files):
            yield f'no file in {folder} ends in {suffix!r} (img_suffix), there is {min(files)}'
