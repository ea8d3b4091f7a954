"""Compare a metric that reads an annotation file in COCO's format with the data set that it evaluates."""

import os

from mmengine.evaluator import BaseMetric
from torch.utils.data import Dataset

from .coco_classes import check_order
from .coco_content import check_coco_content
from .coco_file import CocoFile
from .findings import WARNING, Findings, listed


def check_evaluator(
    key: str, metric: BaseMetric, config: dict, dataset: Dataset, name: str, file: CocoFile | None
) -> Findings:
    """Compare a metric that has read an annotation file with the data set that it evaluates.

    Args:
        key: Key of the metric in the config.
        metric, config: The metric and its config.
        dataset, name: The data set and its name in messages.
        file: The annotation file of the data set, if pycocotools read it.

    Note:
        Objects without ``iscrowd``, which pycocotools requires, get 0 in the metric's memory.
    """
    findings = Findings()
    coco = getattr(metric, '_coco_api', None)
    if coco is None:
        return findings
    path = str(config.get('ann_file') or f'the file of {key}')
    is_same = file is not None and os.path.realpath(path) == os.path.realpath(file.path)
    own = check_coco_content(path, coco.dataset)
    findings.extend(own.findings)
    findings.extend(own.box_findings)
    if 'segm' in getattr(metric, 'metrics', ()):
        findings.extend(own.evaluated_mask_findings)
    objects = coco.dataset.get('annotations', ())
    if own.num_without_iscrowd:
        for each in objects:
            each.setdefault('iscrowd', 0)
        message, remedy = (
            "annotations without 'iscrowd'",
            "they are evaluated as single objects, like 'iscrowd': 0",
        )
        findings.add('no iscrowd', path, message, remedy, count=own.num_without_iscrowd, severity=WARNING)
    if any(each.get('id') == 0 for each in objects):  # ids are unique, so there is only one
        message = 'annotations have the id 0, which pycocotools counts as never found'
        findings.add('annotation of id 0', path, message, 'number annotations from 1', severity=WARNING)
    if not own.num_objects and not getattr(metric, 'format_only', False):
        findings.add_statement('no objects', path, 'it has no objects to evaluate', 'annotate objects')
    findings.extend(_check_classes(key, own, dataset, is_same))
    if file is not None:
        findings.extend(_compare_images(key, own, dataset, name, file, is_same))
    return findings


def _check_classes(key: str, own: CocoFile, dataset: Dataset, is_same: bool) -> Findings:
    classes = dataset.metainfo['classes']
    if own.segments is None:  # boxes and masks of a panoptic data set are of things only
        classes = dataset.metainfo.get('thing_classes', classes)
    names = [each for each in own.names.values() if each in set(classes)]
    if len(names) != len(classes):
        findings = Findings()
        missing = [each for each in classes if each not in names]
        statement = f'classes that are not categories of {own.path}: {listed(missing)}'
        findings.add_statement('class without a category', key, statement, 'add them to the file')
        return findings
    # A wrong order in the data set's own file is already reported for the data set.
    expected = [own.names.get(each) for each in getattr(dataset, 'cat_ids', ())] if is_same else classes
    return check_order(key, expected, own, names)


def _compare_images(
    key: str, own: CocoFile, dataset: Dataset, name: str, file: CocoFile, is_same: bool
) -> Findings:
    """Check that all images of the metric's file are loaded: AP counts the others as without predictions."""
    findings = Findings()
    has_others = own.images.keys() != file.images.keys() or any(
        own.images[each] != image for each, image in file.images.items()
    )
    if not is_same and has_others:
        statement = (
            f'{own.path} has other images ({len(own.images)}) than {file.path} ({len(file.images)}), which '
            'the data set reads'
        )
        remedy = f"set {key}.ann_file to the data set's"
        findings.add_statement('evaluator images', key, statement, remedy)
    elif len(dataset) < len(own.images):
        statement = f'{own.path} has {len(own.images)} images, but {name} loads only {len(dataset)}'
        remedy = 'the others count as images on which nothing was found'
        findings.add_statement('evaluator images', key, statement, remedy, WARNING)
    return findings
