"""Check the data sets of a run, and compare those of training with those of validation and testing."""

import os
from itertools import zip_longest
from typing import Iterator, Sequence

from .findings import WARNING, Finding, Findings
from .split_checks import check_split
from .splits import Split


def check_run(splits: Sequence[Split]) -> Findings:
    """Check all data sets of a run within seconds, without reading all files: see :func:`check_split`."""
    findings = Findings()
    for split in splits:
        findings.extend(check_split(split))
    findings.extend(check_between(splits))
    return findings


def check_between(splits: Sequence[Split]) -> Iterator[Finding]:
    """Check that training has the same classes as validation and testing, and none of their images."""
    for train in (split for split in splits if split.trains):
        for other in (split for split in splits if not split.trains):
            yield from _compare_classes(train, other)
            yield from _compare_images(train, other)


def _compare_classes(train: Split, other: Split) -> Iterator[Finding]:
    if not train.classes or not other.classes:
        return
    for label, (trained, evaluated) in enumerate(zip_longest(train.classes, other.classes)):
        if trained != evaluated:
            names = ['missing' if name is None else repr(name) for name in (evaluated, trained)]
            statement = f'its label {label} is {names[0]}, but {names[1]} in training'
            remedy = 'use the same classes in the same order'
            yield Finding.stated('classes of splits', other.where, statement, remedy)
            break


def _compare_images(train: Split, other: Split) -> Iterator[Finding]:
    shared = []
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
        yield Finding.counted('leak', other.where, message, remedy, shared, severity=WARNING)


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
