"""Compare a metric that reads an annotation file in COCO's format with the data set that it evaluates."""

import os
from typing import Iterator

from mmengine.evaluator import BaseMetric
from torch.utils.data import Dataset

from .coco_classes import check_order
from .coco_content import check_coco_content
from .coco_file import CocoFile
from .findings import WARNING, Finding, listed


def check_evaluator(
    key: str, metric: BaseMetric, config: dict, dataset: Dataset, name: str, file: CocoFile | None
) -> list[Finding]:
    """Compare a metric that has read an annotation file with the data set that it evaluates.

    Args:
        key: Key of the metric in the config.
        metric, config: The metric and its config.
        dataset, name: The data set and its name in messages.
        file: The annotation file of the data set, if pycocotools read it.

    Note:
        Objects without ``iscrowd``, which pycocotools requires, get 0 in the metric's memory.
    """
    coco = getattr(metric, '_coco_api', None)
    if coco is None:
        return []
    path = str(config.get('ann_file') or f'the file of {key}')
    is_same = file is not None and os.path.realpath(path) == os.path.realpath(file.path)
    own = check_coco_content(path, coco.dataset)
    findings = [*own.findings, *own.box_findings]
    if 'segm' in getattr(metric, 'metrics', ()):
        findings += own.evaluated_mask_findings
    objects = coco.dataset.get('annotations', ())
    without = [each for each in objects if own.segments is None and 'iscrowd' not in each]
    if without:
        for each in without:
            each['iscrowd'] = 0
        message = "annotations without 'iscrowd'"
        remedy = "they are evaluated as single objects, like 'iscrowd': 0"
        finding = Finding.counted('no iscrowd', path, message, remedy, count=len(without), severity=WARNING)
        findings.append(finding)
    if any(each.get('id') == 0 for each in objects):  # ids are unique, so there is only one
        message = 'annotations have the id 0, which pycocotools counts as never found'
        remedy = 'number annotations from 1'
        findings.append(Finding.counted('annotation of id 0', path, message, remedy, severity=WARNING))
    if not own.num_objects and not getattr(metric, 'format_only', False):
        statement = 'it has no objects to evaluate'
        findings.append(Finding.stated('no objects', path, statement, 'annotate objects'))
    findings += _check_classes(key, own, dataset, is_same)
    if file is not None:
        findings += _compare_images(key, own, dataset, name, file, is_same)
    return findings


def _check_classes(key: str, own: CocoFile, dataset: Dataset, is_same: bool) -> Iterator[Finding]:
    classes = dataset.metainfo['classes']
    if own.segments is None:  # boxes and masks of a panoptic data set are of things only
        classes = dataset.metainfo.get('thing_classes', classes)
    names = [each for each in own.names.values() if each in set(classes)]
    if len(names) != len(classes):
        missing = [each for each in classes if each not in names]
        statement = f'classes that are not categories of {own.path}: {listed(missing)}'
        yield Finding.stated('class without a category', key, statement, 'add them to the file')
        return
    # A wrong order in the data set's own file is already reported for the data set.
    expected = [own.names.get(each) for each in getattr(dataset, 'cat_ids', ())] if is_same else classes
    yield from check_order(key, expected, own, names)


def _compare_images(
    key: str, own: CocoFile, dataset: Dataset, name: str, file: CocoFile, is_same: bool
) -> Iterator[Finding]:
    """Check that all images of the metric's file are loaded.

    AP treats images that are not loaded as images without predictions.
    """
    has_others = own.images.keys() != file.images.keys() or any(
        own.images[each] != image for each, image in file.images.items()
    )
    if not is_same and has_others:
        statement = (
            f'{own.path} has other images ({len(own.images)}) than {file.path} ({len(file.images)}), which '
            'the data set reads'
        )
        remedy = f"set {key}.ann_file to the data set's"
        yield Finding.stated('evaluator images', key, statement, remedy)
    elif len(dataset) < len(own.images):
        statement = f'{own.path} has {len(own.images)} images, but {name} loads only {len(dataset)}'
        remedy = 'the others count as images on which nothing was found'
        yield Finding.stated('evaluator images', key, statement, remedy, WARNING)
