"""Read all data of a config and find what is wrong with them, for tools/check_data.py."""

import os
from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import Any

from mmengine.config import Config
from mmengine.evaluator import Evaluator
from mmengine.registry import MODELS, DefaultScope
from torch import nn
from torch.utils.data import Dataset

from revcol_mm.data.annotation_files import annotation_files
from revcol_mm.data.coco_file import CocoFile
from revcol_mm.data.findings import ERROR, WARNING, Finding, Findings
from revcol_mm.data.run_checks import check_between
from revcol_mm.data.split_checks import check_split
from revcol_mm.data.splits import Split, build_dataset, splits_of
from revcol_mm.errors import PreflightError, building
from revcol_mm.models.without_weights import without_weights

from .files import dataset_configs, missing_data
from .num_classes import check_num_classes

SPLITS = ('train', 'val', 'test')


class UnbuiltDataset(Dataset):
    """Replacement for a data set that cannot be built, from its config and its annotation file."""

    def __init__(self, config: dict[str, Any], file: CocoFile) -> None:
        self.config, self.ann_file, self.images = config, file.path, file.images
        self.data_root = config.get('data_root') or ''
        folders = dict(config.get('data_prefix') or {})
        self.data_prefix = {key: os.path.join(self.data_root, folder) for key, folder in folders.items()}
        self.pipeline = [SimpleNamespace(**transform) for transform in config.get('pipeline') or ()]
        self.metainfo = {}

    def __len__(self) -> int:
        return len(self.images)


def check_data(
    cfg: Config, workers: int = 1, progress: Callable[[str], Callable[..., Iterable]] | None = None
) -> tuple[list[Split], Findings]:
    """Check all data sets of a config. Every file is read, and every image is decoded.

    A data set, an evaluator or a model that cannot be built is a finding. The others are still checked.

    Args:
        cfg: The config.
        workers: Number of threads that read files.
        progress: Given the name of a data set, returns a function that wraps the iterable of its samples to
            show progress. That function gets their number as ``total``.

    Returns:
        The data sets that were checked, and the findings. Findings of the same files in several splits are
        listed once.

    Raises:
        ValueError: If the config has no dataloaders.
    """
    findings, splits, seen = Findings(), [], []
    names = [name for name in SPLITS if cfg.get(f'{name}_dataloader')]
    if not names:
        raise ValueError(f'{cfg.filename} has no dataloaders')
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = _build_model(cfg, findings)
        for name in names:
            loader, evaluator = cfg[f'{name}_dataloader'], cfg.get(f'{name}_evaluator')
            if (loader, evaluator) in seen:  # often, testing is the same as validation
                continue
            for problem, places in missing_data(cfg, (f'{name}_dataloader',)).items():
                message, remedy = 'missing files or folders', 'add it, or change the path in the config'
                findings.add(
                    Finding.stated('missing data', ', '.join(places), problem, remedy, message=message)
                )
            is_new = all(loader != other for other, _ in seen)
            seen.append((loader, evaluator))
            splits += [(split, is_new) for split in _build_splits(cfg, name, model, findings)]
    for split, is_new in splits:
        if model is not None:
            _try(findings, 'model', split.name, check_num_classes, model, split.where, split.dataset)
        label = f'{split.name}: {split.where}'
        found = check_split(split, is_new, workers, progress and progress(label))
        reported = set() if is_new else {each.kind for each in findings}  # of the same files
        findings.extend(each for each in found if each.kind not in reported)
    splits = [split for split, _ in splits]
    findings.extend(check_between(splits))
    return splits, findings


def _try(
    findings: Findings,
    kind: str,
    where: str,
    action: Callable[..., Any],
    *args: Any,
    what: str = 'it',
    severity: str = ERROR,
) -> Any:
    """Return ``action(*args)``. If it raises an exception, add a finding and return None.

    Args:
        findings: Where the finding is added.
        kind, where, severity: See :class:`Finding`.
        action, args: A function and its arguments.
        what: What the function builds, for the message.
    """
    try:
        with building(what):
            return action(*args)
    except PreflightError as error:
        findings.add(Finding.stated(kind, where, str(error), 'see the config', severity))
        return None


def _build_model(cfg: Config, findings: Findings) -> nn.Module | None:
    what = 'the model without weights, to compare it with the data'
    with without_weights():
        return _try(
            findings, 'model not compared', cfg.filename, MODELS.build, cfg.model, what=what, severity=WARNING
        )


def _build_splits(cfg: Config, name: str, model: nn.Module | None, findings: Findings) -> list[Split]:
    """Build the data sets and the evaluator of a split, or replacements of data sets that cannot be built."""
    loader, evaluator_config = cfg[f'{name}_dataloader'], cfg.get(f'{name}_evaluator')
    where = f'{name}_dataloader'
    with annotation_files(strict=False) as files:
        dataset = _try(findings, 'cannot build', where, build_dataset, loader.dataset)
    for file in files.values():
        findings.extend(file.findings)
    if dataset is None:
        splits = []
        for _, config in dataset_configs(loader, where):
            path = os.path.join(config.get('data_root') or '', config.get('ann_file') or '')
            if path in files:
                splits.append(Split(name, UnbuiltDataset(config, files[path]), files))
        return splits
    evaluator = None
    if evaluator_config:
        with annotation_files(strict=False):
            where = f'{name}_evaluator'
            evaluator = _try(findings, 'cannot build', where, Evaluator, evaluator_config)
    return splits_of(name, dataset, evaluator, evaluator_config, model, files)
