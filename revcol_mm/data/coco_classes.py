"""Compare the classes of a data set with the categories of its annotation file in COCO's format."""

from collections import Counter
from typing import Iterator, Sequence

from torch.utils.data import Dataset

from .coco_file import CocoFile
from .findings import WARNING, Finding, listed


def check_classes(name: str, dataset: Dataset, file: CocoFile | None) -> Iterator[Finding]:
    """Compare the classes of a data set with the categories of its annotation file.

    Args:
        name: Name of the data set in messages.
        dataset: The data set. Its ``cat_ids`` are the category id of each label.
        file: Its annotation file, if pycocotools read it.
    """
    classes = dataset.metainfo['classes']
    category_ids = getattr(dataset, 'cat_ids', None)
    if category_ids is None:
        return
    if len(category_ids) != len(classes):
        statement = (
            f'only {len(category_ids)} of {len(classes)} classes are categories of its annotation file'
        )
        remedy = 'set metainfo=dict(classes=...) to the names there'
        if file:
            repeated = [each for each, count in Counter(classes).items() if count > 1]
            statement += f', and {listed(repeated, 5)} is there twice' if repeated else ''
            missing = [each for each in classes if each not in file.names.values()]
            statement += f', not {listed(missing)}' if missing else ''
            remedy += f', {listed(file.names.values())}'
        yield Finding.stated('class without a category', name, statement, remedy)
    elif file:
        yield from check_order(name, classes, file, [file.names[each] for each in category_ids])
    unused = set(getattr(dataset, 'cat_img_map', ())) - set(category_ids)
    if unused:
        message = 'categories of its annotation file are not among the classes'
        remedy = 'their objects are left out'
        yield Finding.counted('unused category', name, message, remedy, count=len(unused), severity=WARNING)


def check_order(name: str, classes: Sequence[str], file: CocoFile, names: list[str]) -> Iterator[Finding]:
    """Compare the names of labels in ``metainfo`` with those in an annotation file.

    MMDetection finds categories by the names of the classes, but numbers them in the order of the file.

    Args:
        name: Name of the data set or metric in messages.
        classes, names: The name of each label in ``metainfo``, and in the file.
        file: The annotation file.
    """
    for label, (by_class, by_file) in enumerate(zip(classes, names)):
        if by_class != by_file:
            statement = (
                f'label {label} is {by_class!r} in metainfo.classes, but {by_file!r} in the order of the '
                f'categories in {file.path}, which MMDetection trains and evaluates with'
            )
            remedy = f'use the same order in both; the order of the file is {listed(names)}'
            yield Finding.stated('class order', name, statement, remedy)
            break
