"""Read all of a config's data and tell what is wrong with them: what tools/check_data.py does."""

import os
from collections.abc import Callable, Iterable, Iterator
from types import SimpleNamespace
from typing import Any

from mmengine.config import Config
from mmengine.evaluator import Evaluator
from mmengine.registry import MODELS, DefaultScope
from torch import nn
from torch.utils.data import Dataset

from revcol_mm.data.coco_file import CocoFile, annotation_files
from revcol_mm.data.findings import WARNING, Findings
from revcol_mm.data.overlap import check_between
from revcol_mm.data.split_checks import check_split
from revcol_mm.data.splits import Split, build_dataset, splits_of
from revcol_mm.errors import PreflightError, building
from revcol_mm.models.without_weights import without_weights

from .files import dataset_configs, missing_data
from .model import check_num_classes

SPLITS = ('train', 'val', 'test')


class UnbuiltDataset(Dataset):
    """As much of a data set that could not be built as its config and its annotation file tell."""

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
    cfg: Config, workers: int = 0, progress: Callable[[str], Callable[..., Iterable]] | None = None
) -> tuple[list[Split], Findings]:
    """Check all data sets of a config: every file is read, every image decoded.

    What cannot be built is a finding, and what can be told without it is told.

    Args:
        cfg: The config.
        workers: Threads that read. 0: none but this one.
        progress: For a data set's name, what wraps the iterable of its samples to show progress; it gets
            their number as ``total``.

    Returns:
        The data sets that were read, and the findings, those of several splits once.
    """
    findings, splits, seen = Findings(), [], []
    names = [name for name in SPLITS if cfg.get(f'{name}_dataloader')]
    if not names:
        raise ValueError(f'{cfg.filename} has no dataloaders')
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = _build_model(cfg, findings)
        for name in names:
            loader, evaluator = cfg[f'{name}_dataloader'], cfg.get(f'{name}_evaluator')
            if (loader, evaluator) in seen:  # as often testing is validation
                continue
            for problem, places in missing_data(cfg, (f'{name}_dataloader',)).items():
                remedy = 'put it there, or change the path in the config'
                findings.add('missing data', ', '.join(places), problem, remedy, [problem], in_clauses=True)
            read_before = any(loader == other for other, _ in seen)
            seen.append((loader, evaluator))
            splits += [(split, not read_before) for split in _build(cfg, name, model, findings)]
    for split, everything in splits:
        if model is not None:
            _add_error(
                findings,
                'model',
                split.name,
                lambda split=split: check_num_classes(model, split.where, split.dataset),
            )
        label = f'{split.name}: {split.where}'
        found = check_split(split, everything, workers, progress and progress(label))
        told = set() if everything else {each.kind for each in findings}  # of the same files
        findings.extend(each for each in found if each.kind not in told)
    splits = [split for split, _ in splits]
    findings.extend(check_between(splits))
    return splits, findings


def _add_error(findings: Findings, kind: str, where: str, action: Callable[[], Any], **kwargs: Any) -> Any:
    """The result of an action; None, and a finding, if it fails for what the user can mend."""
    try:
        return action()
    except PreflightError as error:
        clause = str(error)
        findings.add(kind, where, clause, 'see the config', [clause], in_clauses=True, **kwargs)
        return None


def _build_model(cfg: Config, findings: Findings) -> nn.Module | None:
    """The model without weights, to compare data with."""

    def build() -> nn.Module:
        with building('the model without weights, to compare it with the data'), without_weights():
            return MODELS.build(cfg.model)

    return _add_error(findings, 'model not compared', cfg.filename, build, severity=WARNING)


def _build(cfg: Config, name: str, model: nn.Module | None, findings: Findings) -> Iterator[Split]:
    """The data sets of a split, or what stands for them if they cannot be built."""
    loader, configs = cfg[f'{name}_dataloader'], cfg.get(f'{name}_evaluator')
    where = f'{name}_dataloader'

    def build(registry: Any, config: Any, what: str) -> Any:
        with building(what):
            return registry(config)

    with annotation_files(strict=False) as files:
        dataset = _add_error(
            findings, 'cannot build', where, lambda: build(build_dataset, loader.dataset, 'it')
        )
    for file in files.values():
        findings.extend(file.findings)
    if dataset is None:
        for _, config in dataset_configs(loader, where):
            path = os.path.join(config.get('data_root') or '', config.get('ann_file') or '')
            if path in files:
                yield Split(name, UnbuiltDataset(config, files[path]), files)
        return
    evaluator = None
    if configs:
        with annotation_files(strict=False):
            evaluator = _add_error(
                findings, 'cannot build', f'{name}_evaluator', lambda: build(Evaluator, configs, 'it')
            )
    yield from splits_of(name, dataset, evaluator, configs, model, files)
