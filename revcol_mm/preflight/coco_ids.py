"""Ids in COCO-style annotation files that do not fit each other, which pycocotools takes without a word."""

import logging
from collections import Counter
from contextlib import contextmanager
from typing import Any, Iterator

from mmengine.logging import print_log

from .errors import PreflightError


def check_ids(file: str, content: dict[str, list[dict[str, Any]]]) -> None:
    """Check the ids of an annotation file.

    Of two images (or categories) of one id pycocotools keeps the last and gives it the objects of both;
    objects of categories that are not there are dropped by MMDetection.

    Args:
        file: The file's name, for messages.
        content: Its images, categories and annotations; panoptic files' annotations have no ids of their own.

    Raises:
        PreflightError: If an id is not unique, or an object has a category that is not in the file. Objects
            of images that are not in it, as where a list of images was cut, are a warning in the log.
    """
    ids = {}
    for kind in ('images', 'categories', 'annotations'):
        ids[kind] = Counter(entry['id'] for entry in content.get(kind, ()) if 'id' in entry)
        for number, times in ids[kind].most_common(1):
            if times > 1:
                raise PreflightError(f'{file}: {times} {kind} have the id {number!r}')
    objects = [each for each in content.get('annotations', ()) if 'segments_info' not in each]
    for kind, field in (('categories', 'category_id'), ('images', 'image_id')):
        strays = [each[field] for each in objects if each[field] not in ids[kind]]
        if not strays:
            continue
        message = f'{file}: {len(strays)} annotations whose {field} is none of the {kind}, such as '
        if kind == 'categories':
            raise PreflightError(f'{message}{strays[0]!r}')
        print_log(f'{message}{strays[0]!r}; they are left out', 'current', level=logging.WARNING)


@contextmanager
def ids_checked() -> Iterator[None]:
    """Check the ids of every annotation file that pycocotools reads in this block, with :func:`check_ids`.

    MMDetection's data sets read theirs, hundreds of megabytes, once, and drop what they read.
    """
    try:
        from pycocotools.coco import COCO
    except ImportError:  # no detection here
        yield
        return
    read = COCO.__init__

    def read_and_check(self: COCO, annotation_file: str | None = None) -> None:
        read(self, annotation_file)
        if annotation_file is not None:
            check_ids(annotation_file, self.dataset)

    COCO.__init__ = read_and_check
    try:
        yield
    finally:
        COCO.__init__ = read
