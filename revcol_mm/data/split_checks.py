"""Check one data set: its classes, annotation file, files, images and masks."""

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Callable, Iterable, Iterator

import numpy as np

from .coco_classes import check_classes
from .coco_evaluator import check_evaluator
from .findings import ERROR, WARNING, Finding, Findings, listed
from .ignore_label import check_ignore_label
from .pipelines import ignore_index, transforms_of
from .sample_checks import check_reports
from .sample_files import check_files
from .samples import ReadOptions, Sample, SampleReport, inspect_sample
from .splits import Split

NUM_SAMPLED = 50  # images and masks that are read of each data set at the start of a run
SKIPPED_IN_TRAINING = ('missing image', 'missing mask', 'broken image', 'broken mask')


def check_split(
    split: Split, everything: bool = False, workers: int = 1, progress: Callable[..., Iterable] | None = None
) -> Findings:
    """Check a data set.

    Args:
        split: The data set, and what it is used with.
        everything: Whether to read every file and decode images, instead of reading :data:`NUM_SAMPLED`
            evenly spaced samples.
        workers: Number of threads that read files.
        progress: Wraps the iterable of samples, whose number it gets as ``total``, to show progress.
    """
    findings = Findings()
    dataset, where, classes = split.dataset, split.where, split.classes
    if len(dataset) == 0:
        remedy = 'check filter_cfg, indices, and prefixes and suffixes of paths'
        findings.add(Finding.stated('no images', split.name, f'{where} has no images (left)', remedy))
        return findings
    if isinstance(classes, str):
        statement = f'metainfo.classes is the text {classes!r}, whose letters would be the classes'
        findings.add(Finding.stated('classes', where, statement, f'write ({classes!r},)'))
        return findings
    if classes:
        findings.extend(check_classes(where, dataset, split.file))
        findings.extend(_check_folders(split))
        for key, metric, config in split.metrics:
            findings.extend(check_evaluator(key, metric, config, dataset, where, split.file))
    findings.extend(_check_annotation_file(split, findings))
    has_masks = hasattr(dataset, 'reduce_zero_label') and bool(classes) and split.loads('seg')
    if has_masks:
        metrics = [metric for _, metric, _ in split.metrics]
        findings.extend(check_ignore_label(split.name, split.dataset, split.model, metrics))
    if not split.is_remote:
        findings.extend(_check_samples(split, has_masks, everything, workers, progress))
    _tolerate_broken_samples(split, findings)
    return findings


def _check_folders(split: Split) -> Iterator[Finding]:
    """Compare the classes with the folders, which MMPretrain numbers in alphabetical order."""
    folders = sorted(getattr(split.dataset, 'folder_to_idx', ()))
    classes = list(split.classes)
    if set(folders) & set(classes) and folders != classes:
        label = next(index for index, names in enumerate(zip(folders, classes)) if names[0] != names[1])
        statement = f'label {label} is the class {classes[label]!r}, but the folder {folders[label]!r}'
        remedy = f'MMPretrain numbers folders in alphabetical order: {listed(folders)}'
        yield Finding.stated('class order', split.where, statement, remedy)


def _check_annotation_file(split: Split, known: Findings) -> Iterator[Finding]:
    """Yield the findings of the annotation file that affect this use of it."""
    file = split.file
    if not file:
        return
    yield from file.box_findings
    category_ids = getattr(split.dataset, 'cat_ids', ())
    unused = [file.names[each] for each in category_ids if not file.num_objects[each]]
    if split.trains and unused:
        severity, remedy = WARNING, 'they are not learnt'
        if len(unused) == len(category_ids):
            severity, remedy = ERROR, 'annotate objects'
        kind, message = 'class without objects', 'classes without an object'
        yield Finding.counted(kind, file.path, message, remedy, unused, severity=severity)
    if split.loads('mask'):
        evaluated = {(each.kind, each.where) for each in known}  # with their severity in evaluation
        yield from (each for each in file.mask_findings if (each.kind, each.where) not in evaluated)


def _check_samples(
    split: Split,
    has_masks: bool,
    everything: bool,
    workers: int,
    progress: Callable[..., Iterable] | None,
) -> Iterator[Finding]:
    dataset = split.dataset
    # MMPretrain has just listed the folders, so all of their files exist.
    found = split.samples(fast=not everything) if everything or not split.has_folder_classes else []
    yield from _check_labels(split, found)
    yield from check_files(split, found)
    if not everything:
        indices = np.unique(np.linspace(0, len(dataset) - 1, NUM_SAMPLED).astype(int)).tolist()
        found = split.samples(indices)
    if not has_masks:  # their pixels are labels of no class, unless they are ids of panoptic segments
        found = [each if each.segments is not None else each._replace(mask=None) for each in found]
    options = _read_options(split, everything, has_masks)
    reports = read(found, options, workers, progress)
    yield from check_reports(split, found, reports, options)


def _check_labels(split: Split, found: list[Sample]) -> Iterator[Finding]:
    """Check the labels of images that are listed in a text file."""
    num_classes = len(split.classes)
    wrong = [
        f'{sample.label} of {sample.image}'
        for sample in found
        if sample.label is not None and not 0 <= sample.label < num_classes
    ]
    if num_classes and wrong:
        where = str(getattr(split.dataset, 'ann_file', '') or split.where)
        remedy = f'there are {num_classes} classes, 0 to {num_classes - 1}'
        yield Finding.counted('label', where, 'labels beyond the classes', remedy, wrong)


def _read_options(split: Split, decode: bool, has_masks: bool) -> ReadOptions:
    dataset = split.dataset
    colour_types = [str(getattr(each, 'color_type', '')) for each in transforms_of(dataset)]
    options = ReadOptions(decode, not any('ignore_orientation' in each for each in colour_types))
    if not has_masks:
        return options
    return options._replace(
        num_classes=len(split.classes),
        ignore_index=ignore_index(dataset),
        reduce_zero_label=dataset.reduce_zero_label,
        label_map=getattr(dataset, 'label_map', None),
    )


def read(
    found: list[Sample], options: ReadOptions, workers: int, progress: Callable[..., Iterable] | None
) -> list[SampleReport]:
    """Read samples in threads, because Pillow and hashing release Python's lock."""
    progress = progress or (lambda reports, total: reports)
    inspect = partial(inspect_sample, options=options)
    with ThreadPoolExecutor(workers) as pool:
        return list(progress(pool.map(inspect, found), total=len(found)))


def _tolerate_broken_samples(split: Split, findings: Findings) -> None:
    """Downgrade errors about broken samples to warnings if ``max_broken`` covers them."""
    broken = [each for each in findings if each.kind in SKIPPED_IN_TRAINING]
    if split.trains and broken and sum(each.count for each in broken) <= split.max_broken:
        for each in broken:
            each.severity = WARNING
            each.remedy += f'; training leaves out up to {split.max_broken} (max_broken)'
