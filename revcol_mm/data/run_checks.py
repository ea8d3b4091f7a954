"""Check the data sets of a run, and compare those of training with those of validation and testing."""

import os
from itertools import zip_longest
from typing import Sequence

from .findings import WARNING, Findings
from .split_checks import check_split
from .splits import Split


def check_run(splits: Sequence[Split]) -> Findings:
    """Check all data sets of a run within seconds, without reading all files: see :func:`check_split`."""
    findings = Findings()
    for split in splits:
        findings.extend(check_split(split))
    findings.extend(check_between(splits))
    return findings


def check_between(splits: Sequence[Split]) -> Findings:
    """Check that training has the same classes as validation and testing, and none of their images."""
    findings = Findings()
    for train in (split for split in splits if split.trains):
        for other in (split for split in splits if not split.trains):
            findings.extend(_compare_classes(train, other))
            findings.extend(_compare_images(train, other))
    return findings


def _compare_classes(train: Split, other: Split) -> Findings:
    findings = Findings()
    if not train.classes or not other.classes:
        return findings
    for label, (trained, evaluated) in enumerate(zip_longest(train.classes, other.classes)):
        if trained != evaluated:
            names = ['missing' if name is None else repr(name) for name in (evaluated, trained)]
            statement = f'its label {label} is {names[0]}, but {names[1]} in training'
            remedy = 'use the same classes in the same order'
            findings.add_statement('classes of splits', other.where, statement, remedy)
            break
    return findings


def _compare_images(train: Split, other: Split) -> Findings:
    findings, shared = Findings(), []
    digests = train.digests.keys() & other.digests.keys()
    if digests:
        shared = [f'{train.digests[each]} and {other.digests[each]}' for each in sorted(digests)]
    elif _may_share_images(train, other):
        images = [
            {os.path.abspath(each.image) for each in split.samples() if each.image}
            for split in (train, other)
        ]
        shared = sorted(images[0] & images[1])
    if shared:
        message, remedy = 'images that are also in training', 'metrics on them do not measure generalization'
        findings.add('leak', other.where, message, remedy, shared, severity=WARNING)
    return findings


def _may_share_images(train: Split, other: Split) -> bool:
    """Whether the image folder of one data set is, or is inside of, that of the other."""
    if train.is_remote or other.is_remote:
        return False
    folders = []
    for split in (train, other):
        prefix = getattr(split.dataset, 'data_prefix', None) or {}
        folder = prefix.get('img') or prefix.get('img_path') if isinstance(prefix, dict) else prefix
        folders.append(os.path.join(os.path.abspath(folder or ''), ''))
    return folders[0].startswith(folders[1]) or folders[1].startswith(folders[0])
