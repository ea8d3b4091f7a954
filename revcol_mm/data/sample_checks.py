"""Collect what was found in the samples of a data set: problems, labels and identical images."""

from collections import Counter, defaultdict
from typing import Iterator

from .findings import ERROR, WARNING, Finding, Findings
from .samples import KINDS, ReadOptions, Sample, SampleReport
from .splits import Split

MIN_MASKS = 10  # that are needed to conclude that a label is missing in all masks


def check_reports(
    split: Split, found: list[Sample], reports: list[SampleReport], options: ReadOptions
) -> Findings:
    """Turn the reports of samples into findings, and set ``split.digests``.

    With ``options.decode``, ``found`` has all samples of the data set; otherwise it has some.
    """
    findings = Findings()
    numbers = options._asdict() | dict(last_class=options.num_classes - 1)
    for report in reports:
        for kind, statement in report.problems:
            message, remedy = KINDS[kind]
            remedy = remedy.format(**numbers)
            findings.add(Finding.stated(kind, split.where, statement, remedy, message=message))
    findings.extend(_check_labels(split, reports, options))
    findings.extend(_check_identical_images(split, found, reports))
    return findings


def _check_labels(split: Split, reports: list[SampleReport], options: ReadOptions) -> Iterator[Finding]:
    """Check that masks have several classes and, if all were read, that each class is in a mask."""
    ignored = options.ignore_index
    counts = Counter(label for report in reports for label in report.labels or ())
    num_masks = sum(report.labels is not None for report in reports)
    labels = [label for label in counts if label != ignored]
    if num_masks >= MIN_MASKS and options.num_classes > 1 and len(labels) < 2 and counts[ignored]:
        only = f'only the class {labels[0]}' if labels else 'no class'
        statement = f'{num_masks} masks have {only}, and {ignored}, which is ignored (ignore_index)'
        remedy = 'write the number of its class, starting at 0, into each pixel'
        if options.reduce_zero_label:
            remedy += ', or set reduce_zero_label=False if 0 is a class'
        severity = ERROR if split.trains else WARNING
        yield Finding.stated('nothing to learn', split.where, statement, remedy, severity)
    elif options.decode and num_masks:
        absent = [name for label, name in enumerate(split.classes) if label not in counts]
        if absent:
            message, remedy = 'classes that are in no mask', 'they are not learnt'
            yield Finding.counted('class in no mask', split.where, message, remedy, absent, severity=WARNING)


def _check_identical_images(
    split: Split, found: list[Sample], reports: list[SampleReport]
) -> Iterator[Finding]:
    by_digest = defaultdict(list)
    for sample, report in zip(found, reports):
        if report.digest is not None:
            by_digest[report.digest].append(sample.image)
    split.digests = {digest: paths[0] for digest, paths in by_digest.items()}
    copies = [' and '.join(paths[:2]) for paths in by_digest.values() if len(set(paths)) > 1]
    if copies:
        message, remedy = 'images that are saved in several files', 'keep one of each'
        yield Finding.counted('identical images', split.where, message, remedy, copies, severity=WARNING)
