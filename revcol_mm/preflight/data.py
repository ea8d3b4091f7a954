"""Checks of a run's data sets: one implementation, for the start of a run and for tools/check_data.py."""

import os
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import zip_longest
from typing import Any, Callable, Iterable, Sequence

import numpy as np
from mmengine.evaluator import BaseMetric, Evaluator
from mmengine.registry import DATASETS
from torch import nn
from torch.utils.data import Dataset

from .coco import CocoFile, check_classes, check_evaluator, listed
from .errors import PreflightError
from .findings import ERROR, WARNING, Findings
from .ignore_label import check_ignore_label
from .pipelines import ignore_index, innermost_datasets
from .samples import KINDS, Look, Reading, Sample, look

NUM_SAMPLED = 50  # images and masks that the start of a run reads of each data set
IMAGE_SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.tif', '.tiff', '.webp')
MIN_MASKS = 10  # from which on their labels tell of the data set
LEFT_OUT_IN_TRAINING = ('missing image', 'missing mask', 'broken image', 'broken mask')


@dataclass
class Split:
    """A data set of a run, without wrappers, and what it is used with.

    Args:
        name: 'train', 'val' or 'test'.
        dataset: The data set.
        files: Annotation files that were read to build it, by path.
        metrics: Of its evaluator: key in the config, metric and config of each.
        max_broken: How many samples training may leave out.
        model: The model, to compare its ``ignore_index`` with, if there is one.
        digests: File by hash of its content, of images that were decoded.
    """

    name: str
    dataset: Dataset
    files: dict[str, CocoFile] = field(default_factory=dict)
    metrics: Sequence[tuple[str, BaseMetric, dict]] = ()
    max_broken: int = 0
    model: nn.Module | None = None
    digests: dict[bytes, str] = field(default_factory=dict)

    @property
    def where(self) -> str:
        """What the data set is called in messages."""
        name = f'{type(self.dataset).__name__} at {getattr(self.dataset, "data_root", "?")}'
        return name if self.trains else f'{name} ({self.name})'

    @property
    def classes(self) -> Sequence[str]:
        return getattr(self.dataset, 'metainfo', {}).get('classes') or ()

    @property
    def file(self) -> CocoFile | None:
        """Its annotation file, if pycocotools has read it."""
        return self.files.get(getattr(self.dataset, 'ann_file', None))

    @property
    def trains(self) -> bool:
        return self.name == 'train'


def _transforms(dataset: Dataset) -> list[Any]:
    """Transforms of a data set without wrappers, those inside of others included."""
    return next(innermost_datasets(dataset))[1]


def _is_remote(dataset: Dataset) -> bool:
    """Whether files are on a store that only its own client can see."""
    for each in (dataset, *_transforms(dataset)):
        if (getattr(each, 'backend_args', None) or {}).get('backend', 'local') != 'local':
            return True
    prefix = getattr(dataset, 'data_prefix', None) or {}
    return any('://' in str(folder) for folder in (prefix.values() if isinstance(prefix, dict) else [prefix]))


def loads(dataset: Dataset, what: str) -> bool:
    """Whether a pipeline loads 'mask' (of objects) or 'seg'. Without a pipeline, it does."""
    if getattr(dataset, 'pipeline', None) is None:
        return True
    return any(getattr(each, f'with_{what}', False) for each in _transforms(dataset))


def build_dataset(config: dict) -> Dataset:
    """Build a data set as MMEngine does, and say so if it is empty.

    Raises:
        ValueError: If it has no images.
    """
    try:
        return DATASETS.build(config)
    except ValueError as error:
        if 'need at least one array' not in str(error):  # of numpy, to MMEngine
            raise
        left = (
            f'filter_cfg={config.get("filter_cfg")}, indices={config.get("indices")}, prefixes and suffixes'
        )
        raise ValueError(f'{error}: no images are left by {left}') from error


def samples(split: Split, indices: Iterable[int] | None = None, more: bool = False) -> list[Sample]:
    """Files of a data set's samples, without reading them.

    Args:
        split: The data set.
        indices: Of the samples. None: all.
        more: Whether there may be images of the annotation file that the data set leaves out, which for
            hundreds of thousands takes seconds less than to ask it.
    """
    dataset, file = split.dataset, split.file
    prefix = getattr(dataset, 'data_prefix', None) or {}
    if file and (more or len(dataset) == len(file.images)) and not prefix.get('seg'):
        images = list(file.images.values())
        return [
            Sample(os.path.join(prefix.get('img') or '', name), None, (width, height))
            for name, width, height in (images if indices is None else map(images.__getitem__, indices))
        ]
    if not hasattr(dataset, 'get_data_info'):
        return []
    with_masks = loads(dataset, 'seg')
    segments = file.segments if file and with_masks else None
    found = []
    for index in range(len(dataset)) if indices is None else indices:
        info = dataset.get_data_info(index)
        image, mask = info.get('img_path'), info.get('seg_map_path') if with_masks else None
        size = (info['width'], info['height']) if 'width' in info and 'height' in info else None
        label = info.get('gt_label')
        label = label if isinstance(label, int) else None  # else there are several
        ids = segments.get(info['img_id'], frozenset()) if segments is not None else None
        found.append(Sample(image and str(image), mask and str(mask), size, label, ids))
    return found


def _is_of_folders(dataset: Dataset) -> bool:
    return hasattr(dataset, 'folder_to_idx')


def check_split(
    split: Split, everything: bool = False, workers: int = 0, progress: Callable[..., Iterable] | None = None
) -> Findings:
    """Check a data set.

    Args:
        split: The data set, and what it is used with.
        everything: Whether every file is read, and images decoded; else :data:`NUM_SAMPLED` of each.
        workers: Threads that read.
        progress: Wraps the iterable of samples, to show progress.
    """
    findings = Findings()
    dataset, where, classes = split.dataset, split.where, split.classes
    if len(dataset) == 0:
        clause = f'{where} has no images (left)'
        remedy = 'do filter_cfg, indices, prefixes and suffixes leave any?'
        findings.add('no images', split.name, clause, remedy, [clause], in_clauses=True)
        return findings
    if isinstance(classes, str):
        clause = f'metainfo.classes is the text {classes!r}, whose letters would be the classes'
        findings.add('classes', where, clause, f'write ({classes!r},)', [clause], in_clauses=True)
        return findings
    if classes:
        findings.extend(check_classes(where, dataset, split.file))
        findings.extend(_check_folders(split))
        for place, metric, config in split.metrics:
            findings.extend(check_evaluator(place, metric, config, dataset, where, split.file))
    if split.file:
        findings.extend(split.file.box_findings)
        findings.extend(_check_objects(split))
        if loads(dataset, 'mask'):
            told = {(each.kind, each.where) for each in findings}  # of masks that are evaluated
            findings.extend(each for each in split.file.mask_findings if (each.kind, each.where) not in told)
    has_masks = hasattr(dataset, 'reduce_zero_label') and bool(classes) and loads(dataset, 'seg')
    if has_masks:
        findings.extend(_check_ignored(split))
    if not _is_remote(dataset):
        # Of folders that MMPretrain has just read, all files are there.
        found = samples(split, more=not everything) if everything or not _is_of_folders(dataset) else []
        findings.extend(_check_labels(split, found))
        findings.extend(_check_files(split, found))
        if not everything:
            indices = np.unique(np.linspace(0, len(dataset) - 1, NUM_SAMPLED).astype(int)).tolist()
            found = samples(split, indices)
        if not has_masks:  # a mask's pixels are neither labels nor, of some, ids of segments
            found = [each if each.segments is not None else each._replace(mask=None) for each in found]
        reading = _reading(split, everything, has_masks)
        looks = read(found, reading, workers, progress)
        findings.extend(_check_looks(split, found, looks, reading, everything))
    _tolerate(split, findings)
    return findings


def read(
    found: list[Sample], reading: Reading, workers: int, progress: Callable[..., Iterable] | None
) -> list[Look]:
    """Read samples, in threads: Pillow and hashing leave Python's lock to others."""
    progress = progress or (lambda looks, total: looks)
    if workers < 1:
        return list(progress((look(sample, reading) for sample in found), total=len(found)))
    with ThreadPoolExecutor(workers) as pool:
        return list(progress(pool.map(partial(look, reading=reading), found), total=len(found)))


def _check_folders(split: Split) -> Findings:
    """MMPretrain numbers folders in the order of their names, whatever the classes are called."""
    findings = Findings()
    folders = sorted(getattr(split.dataset, 'folder_to_idx', ()))
    classes = list(split.classes)
    if set(folders) & set(classes) and folders != classes:
        label = next(i for i, names in enumerate(zip(folders, classes)) if names[0] != names[1])
        clause = f'label {label} is {classes[label]!r} by its classes, but the folder {folders[label]!r}'
        remedy = f'MMPretrain takes folders in the order of their names: {listed(folders)}'
        findings.add('order of classes', split.where, clause, remedy, [clause], in_clauses=True)
    return findings


def _check_labels(split: Split, found: list[Sample]) -> Findings:
    """Labels of images in a text file."""
    findings = Findings()
    num_classes = len(split.classes)
    wrong = [
        f'{sample.label} of {sample.image}'
        for sample in found
        if sample.label is not None and not 0 <= sample.label < num_classes
    ]
    if num_classes and wrong:
        remedy = f'there are {num_classes} classes, 0 to {num_classes - 1}'
        where = str(getattr(split.dataset, 'ann_file', '') or split.where)
        findings.add('label', where, 'labels that are none of the classes', remedy, wrong)
    return findings


def _check_objects(split: Split) -> Findings:
    findings = Findings()
    file, categories = split.file, getattr(split.dataset, 'cat_ids', ())
    without = [file.names[each] for each in categories if not file.num_objects[each]]
    if not split.trains or not without:
        return findings
    is_error = len(without) == len(categories)
    findings.add(
        'class without objects',
        file.path,
        'classes without an object',
        'annotate objects' if is_error else 'they are not learnt',
        without,
        severity=ERROR if is_error else WARNING,
    )
    return findings


def _check_ignored(split: Split) -> Findings:
    findings = Findings()
    try:
        check_ignore_label(split.dataset, split.model, [metric for _, metric, _ in split.metrics])
    except PreflightError as error:
        clause, _, remedy = str(error).rpartition(': ')
        findings.add('ignore_index', split.name, clause, remedy, [clause], in_clauses=True)
    return findings


def _reading(split: Split, decode: bool, has_masks: bool) -> Reading:
    dataset = split.dataset
    colours = [str(getattr(each, 'color_type', '')) for each in _transforms(dataset)]
    reading = Reading(decode, not any('ignore_orientation' in each for each in colours))
    if not has_masks:
        return reading
    return reading._replace(
        num_classes=len(split.classes),
        ignore_index=ignore_index(dataset),
        reduce_zero_label=dataset.reduce_zero_label,
        label_map=getattr(dataset, 'label_map', None),
    )


class _Folders:
    """Files that are there, by listing each folder once: a question for every file is slow on a network."""

    def __init__(self) -> None:
        self._names = {}

    def names(self, folder: str) -> set[str]:
        if folder not in self._names:
            try:
                with os.scandir(folder or '.') as entries:
                    self._names[folder] = {entry.name for entry in entries}
            except OSError:
                self._names[folder] = set()
        return self._names[folder]

    def missing(self, paths: Iterable[str]) -> list[str]:
        missing = []
        for path in paths:
            folder, name = os.path.split(path)
            if name not in self.names(folder) and not os.path.exists(path):  # cases may not count
                missing.append(path)
        return missing

    def hint(self, path: str) -> str:
        """What to do about a file that is not there, from what is there."""
        folder, name = os.path.split(path)
        there = self.names(folder)
        if '\\' in name:
            return r"their names have Windows' separators: write / in place of '\'"
        lower = {each.lower(): each for each in there}
        if name.lower() in lower:
            return f'there is {lower[name.lower()]}: upper and lower case differ'
        stems = {os.path.splitext(each)[0]: each for each in there}
        for stem in (os.path.splitext(name)[0], os.path.splitext(os.path.splitext(name)[0])[0]):
            if stem in stems:
                return f'there is {stems[stem]}: suffixes differ'
        parent, inner = os.path.split(folder)
        if not there and name in self.names(parent):
            return f'there is {os.path.join(parent, name)}: {inner} is in the name and not in the folder'
        if not there:
            return f'there is no folder {folder}, or it is empty'
        return 'put them there, or take their entries out'


def _check_files(split: Split, found: list[Sample]) -> Findings:
    findings, folders = Findings(), _Folders()
    dataset, where = split.dataset, split.where
    for kind in ('image', 'mask'):
        paths = [path for sample in found if (path := getattr(sample, kind)) is not None]
        missing = folders.missing(paths)
        if missing and split.file and len(found) > len(dataset):
            paths = [path for sample in samples(split) if (path := getattr(sample, kind)) is not None]
            missing = folders.missing(paths)
        if missing:
            message = f'{kind}s of {len(paths)} that are not there'
            findings.add(f'missing {kind}', where, message, folders.hint(missing[0]), missing)
    paths = Counter(sample.image for sample in found if sample.image is not None)
    twice = [path for path, times in paths.items() if times > 1]
    if twice and not split.file:  # whose own check says so
        message = 'images that are listed more than once'
        findings.add('image listed twice', where, message, 'list each once', twice, severity=WARNING)
    if not split.trains:
        findings.extend(_check_outputs(split, paths))
    if not getattr(dataset, 'ann_file', '') and getattr(dataset, 'img_suffix', None):
        findings.extend(_check_suffixes(dataset, where, found, folders))
    return findings


def _check_outputs(split: Split, paths: Iterable[str]) -> Findings:
    """Predictions and pictures are called as the images, without their folders."""
    findings, by_name = Findings(), defaultdict(list)
    for path in paths:
        by_name[os.path.splitext(os.path.basename(path))[0]].append(path)
    same = [' and '.join(each[:2]) for each in by_name.values() if len(each) > 1]
    if same:
        writes = any(getattr(metric, 'output_dir', None) for _, metric, _ in split.metrics)
        findings.add(
            'images of one name',
            split.where,
            "names that several images have, whose predictions' files would overwrite each other",
            'rename images' if writes else 'rename images before you write predictions or pictures',
            same,
            severity=ERROR if writes else WARNING,
        )
    return findings


def _check_suffixes(dataset: Dataset, where: str, found: list[Sample], folders: _Folders) -> Findings:
    """Files of the folders that MMSegmentation does not take, by its suffixes."""
    findings = Findings()
    used = {path for sample in found for path in (sample.image, sample.mask) if path is not None}

    def others(kind: str, suffixes: tuple[str, ...]) -> list[str]:
        inside = {os.path.dirname(path) for sample in found if (path := getattr(sample, kind)) is not None}
        return [
            path
            for folder in sorted(inside)
            for name in sorted(folders.names(folder))
            if name.lower().endswith(suffixes) and (path := os.path.join(folder, name)) not in used
        ]

    message, remedy = 'images in its folders that it does not take', f'img_suffix is {dataset.img_suffix!r}'
    if images := others('image', IMAGE_SUFFIXES):
        findings.add('image of no use', where, message, remedy, images, severity=WARNING)
    if masks := others('mask', (dataset.seg_map_suffix.lower(),)):
        message, remedy = 'masks without an image', 'their names differ, or images are missing'
        findings.add('mask of no use', where, message, remedy, masks, severity=WARNING)
    return findings


def _check_looks(
    split: Split, found: list[Sample], looks: list[Look], reading: Reading, everything: bool
) -> Findings:
    findings, where = Findings(), split.where
    for each in looks:
        for kind, clause in each.problems:
            message, remedy = KINDS[kind]
            if kind == 'mask label':
                remedy = (
                    f'there are {reading.num_classes} classes, 0 to {reading.num_classes - 1}, and '
                    f'{reading.ignore_index} is left out (ignore_index)'
                )
            findings.add(kind, where, message, remedy, [clause], in_clauses=True)
    labels = Counter(label for each in looks for label in each.labels or ())
    num_masks = sum(each.labels is not None for each in looks)
    classes = [label for label in labels if label != reading.ignore_index]
    if (
        num_masks >= MIN_MASKS
        and reading.num_classes > 1
        and len(classes) < 2
        and labels[reading.ignore_index]
    ):
        only = f'only the class {classes[0]}' if classes else 'no class'
        clause = (
            f'{num_masks} masks have {only}, and {reading.ignore_index}, which is left out (ignore_index)'
        )
        remedy = 'write the number of its class, from 0 on, into each pixel'
        if reading.reduce_zero_label:
            remedy += ', or set reduce_zero_label=False if 0 is a class'
        severity = ERROR if split.trains else WARNING
        findings.add('nothing to learn', where, clause, remedy, [clause], severity=severity, in_clauses=True)
    elif everything and num_masks:
        absent = [name for label, name in enumerate(split.classes) if label not in labels]
        if absent:
            message = 'classes that are in no mask'
            findings.add('class in no mask', where, message, 'they are not learnt', absent, severity=WARNING)
    by_digest = defaultdict(list)
    for sample, each in zip(found, looks):
        if each.digest is not None:
            by_digest[each.digest].append(sample.image)
    split.digests = {digest: images[0] for digest, images in by_digest.items()}
    same = [' and '.join(paths[:2]) for paths in by_digest.values() if len(set(paths)) > 1]
    if same:
        message = 'pictures that several files hold'
        findings.add('same picture twice', where, message, 'keep one of each', same, severity=WARNING)
    return findings


def _tolerate(split: Split, findings: Findings) -> None:
    """Training leaves out some broken samples: not worth an error."""
    broken = [each for each in findings if each.kind in LEFT_OUT_IN_TRAINING]
    if split.trains and broken and sum(each.count for each in broken) <= split.max_broken:
        for each in broken:
            each.severity = WARNING
            each.remedy += f'; training leaves out up to {split.max_broken} (max_broken)'


def splits_of(
    name: str,
    dataset: Dataset,
    evaluator: Evaluator | None = None,
    configs: Sequence[dict] | dict | None = None,
    model: nn.Module | None = None,
    files: dict[str, CocoFile] | None = None,
) -> list[Split]:
    """The data sets inside of a dataloader's.

    Args:
        name: 'train', 'val' or 'test'.
        dataset: The dataloader's.
        evaluator: Of the loop, if it has one.
        configs: The evaluator's.
        model: The model, if it is built.
        files: Annotation files that were read. None: those of the dataloader's data set.
    """
    parts = [part for part, _ in innermost_datasets(dataset)]
    files = getattr(dataset, 'annotation_files', {}) if files is None else files
    max_broken = getattr(dataset, 'max_broken', 0)
    metrics = list(getattr(evaluator, 'metrics', ()))
    places = [
        f'{name}_evaluator' + (f'.{index}' if isinstance(configs, list) else '')
        for index in range(len(metrics))
    ]
    configs = configs if isinstance(configs, list) else [configs] * len(metrics)
    configs = [config if isinstance(config, dict) else {} for config in configs]
    metrics = list(zip(places, metrics, configs)) if len(parts) == 1 else []  # else they are of all together
    return [Split(name, part, files, metrics, max_broken, model) for part in parts]


def check_between(splits: Sequence[Split]) -> Findings:
    """Compare the data sets of training with those of validation and testing."""
    findings = Findings()
    for train in (split for split in splits if split.trains):
        for other in (split for split in splits if not split.trains):
            findings.extend(_compare(train, other))
    return findings


def _compare(train: Split, other: Split) -> Findings:
    findings = Findings()
    place = other.where
    pairs = zip_longest(train.classes, other.classes)
    differing = next((label for label, names in enumerate(pairs) if names[0] != names[1]), None)
    if train.classes and other.classes and differing is not None:
        names = [
            repr(each.classes[differing]) if differing < len(each.classes) else 'none'
            for each in (train, other)
        ]
        clause = f'its label {differing} is the class {names[1]}, in training {names[0]}'
        remedy = 'give both the same classes in the same order'
        findings.add('classes of splits', place, clause, remedy, [clause], in_clauses=True)
    seen = train.digests.keys() & other.digests.keys()
    if seen:
        same = [f'{train.digests[each]} and {other.digests[each]}' for each in sorted(seen)]
    elif _may_share(train, other):
        images = [
            {os.path.abspath(each.image) for each in samples(split) if each.image} for split in (train, other)
        ]
        same = sorted(images[0] & images[1])
    else:
        return findings
    if same:
        message = 'images that are in training, too'
        findings.add('leak', place, message, 'metrics on them tell nothing of others', same, severity=WARNING)
    return findings


def _may_share(train: Split, other: Split) -> bool:
    """Whether one of the folders that images are in is, or is in, one of the other's; False: surely not."""
    if _is_remote(train.dataset) or _is_remote(other.dataset):
        return False
    folders = []
    for dataset in (train.dataset, other.dataset):
        prefix = getattr(dataset, 'data_prefix', None) or {}
        folder = prefix.get('img') or prefix.get('img_path') if isinstance(prefix, dict) else prefix
        folders.append(os.path.join(os.path.abspath(folder or ''), ''))
    return folders[0].startswith(folders[1]) or folders[1].startswith(folders[0])


def check_run(splits: Sequence[Split]) -> Findings:
    """Check all data sets of a run as its start does, in seconds: see :func:`check_split`."""
    findings = Findings()
    for split in splits:
        findings.extend(check_split(split))
    findings.extend(check_between(splits))
    return findings
