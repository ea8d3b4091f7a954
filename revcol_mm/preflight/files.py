"""Files and folders that a config names, looked for before anything is built."""

import os
import re
from pathlib import Path
from typing import Any, Iterator

from mmengine.config import Config, ConfigDict

from revcol_mm.models.checkpoint import is_remote, local_checkpoint

# By what MMEngine's `load` goes, the end of a name; its reader of YAML builds any Python object.
FORMATS_WITH_CODE = {'pkl': 'a pickle', 'pickle': 'a pickle', 'yml': 'YAML', 'yaml': 'YAML'}
# Classes that read pickles whatever these are called. (CIFAR's are known by their checksums.)
CLASSES_WITH_CODE = {
    'RefCocoDataset': 'split_file as a pickle',  # MMDetection's
    'RefCOCO': 'split_file as a pickle',  # MMPretrain's
    'OpenImagesDataset': 'meta_file as a pickle',
    'OpenImagesChallengeDataset': 'meta_file and hierarchy_file as pickles',
}
DEFAULTS_WITH_CODE = {'CocoOccludedSeparatedMetric': ('occluded_ann', 'separated_ann')}
NAMES = re.compile(r'\.classes(?:\.\d+)?$', re.IGNORECASE)  # which may be any words
WRITTEN = ('out_file_path', 'proposals_file')  # of DumpResults, DumpDetResults and DumpProposals
REMEDIES = {'proposal_file': 'MMDetection takes proposals in no other format; use a model with an rpn_head'}


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


def check_files(cfg: Config, loaders: tuple[str, ...], evaluators: bool = True) -> None:
    """Check that data that dataloaders and their evaluators name exist, and checkpoints to start from.

    Args:
        cfg: The whole config.
        loaders: Names of the dataloaders that will be used, such as 'train_dataloader'.
        evaluators: Whether their evaluators will be used, too.

    Raises:
        FileNotFoundError: With every missing folder or file, and every file that may run code as it is read,
            one a line.
    """
    problems = missing_data(cfg, loaders, evaluators)
    names = [loader.replace('_dataloader', '_evaluator') for loader in loaders] if evaluators else []
    for name in ('model', *loaders, *names):
        for place, problem in files_with_code(cfg.get(name), name):
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


def missing_data(cfg: Config, loaders: tuple[str, ...], evaluators: bool = True) -> dict[str, list[str]]:
    """What is not there of the data that dataloaders and their evaluators name, and where each is named."""
    problems = {}
    for loader in loaders:
        for place, dataset in dataset_configs(cfg.get(loader), loader):
            for problem in _missing_data(dataset):
                problems.setdefault(problem, []).append(place)
        for place, evaluator in _evaluator_configs(cfg, loader) if evaluators else ():
            for key, what in (('ann_file', 'annotation file'), ('seg_prefix', 'data folder')):
                path = evaluator.get(key)
                known = not path or _is_remote(evaluator, path) or reads_code(str(path))
                if not known and not os.path.exists(path):
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


def leaves(node: Any, place: str = '') -> Iterator[tuple[str, Any]]:
    """Every value of a config that is no container, with its place, such as 'model.neck.0.type'."""
    if isinstance(node, dict):
        children = node.items()
    elif isinstance(node, (list, tuple, set)):
        children = enumerate(node)
    else:
        yield place, node
        return
    for key, child in children:
        yield from leaves(child, f'{place}.{key}' if place else str(key))


def reads_code(file: str) -> str | None:
    """The format by which MMEngine reads a file and may run what is in it, in words; None: another one."""
    return FORMATS_WITH_CODE.get(file.rpartition('.')[2])


def files_with_code(node: Any, place: str) -> Iterator[tuple[str, str]]:
    """Places in a config that name files which may run code as they are read, and what is wrong there."""
    values = dict(leaves(node, place))
    for where, value in values.items():
        parent, _, key = where.rpartition('.')
        if not isinstance(value, str) or key in WRITTEN or NAMES.search(where):
            continue
        kind = reads_code(value)
        name = value.rpartition('.')[2]  # without a scope
        if key == 'type' and name in CLASSES_WITH_CODE:
            pickles = CLASSES_WITH_CODE[name]
            yield where, f'{value} reads {pickles}, which may run code: convert the data for CocoDataset'
        elif key == 'type' and name in DEFAULTS_WITH_CODE:
            for missing in DEFAULTS_WITH_CODE[name]:
                if f'{parent}.{missing}' not in values:
                    yield where, f'{value} fetches a pickle, which may run code: set {missing} to a JSON file'
        elif kind and key != 'checkpoint':  # these are read as weights alone
            remedy = REMEDIES.get(key, 'convert it to JSON')
            yield where, f'{value} is {kind}, which may run code as it is read: {remedy}'


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
        if reads_code(str(ann_file)) is None and (not path.is_file() or path.stat().st_size == 0):
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
