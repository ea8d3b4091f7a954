"""Check annotation files in COCO's format for mistakes that pycocotools and MMDetection accept silently."""

from collections import Counter
from typing import Any, Iterator

from .coco_boxes import check_boxes
from .coco_file import CocoFile
from .coco_segmentations import check_segmentations
from .findings import ERROR, MAJORITY, WARNING, Finding

REQUIRED_KEYS = dict(
    images=('id', 'file_name', 'height', 'width'),
    categories=('id', 'name'),
    annotations=('id', 'image_id', 'category_id', 'bbox', 'area'),
)


def check_coco_content(path: str, content: dict[str, Any]) -> CocoFile:
    """Check the content of an annotation file.

    Args:
        path: Path of the file, for messages.
        content: Images, categories and annotations. The segments of a panoptic file are its objects.
    """
    file = CocoFile(path)
    entries = {kind: content.get(kind) or [] for kind in REQUIRED_KEYS}
    objects = entries['annotations']
    if isinstance(objects, list) and objects and 'segments_info' in objects[0]:
        infos = {each['image_id']: each['segments_info'] for each in objects}
        file.segments = {image: frozenset(each['id'] for each in info) for image, info in infos.items()}
        objects = [{**each, 'image_id': image} for image, info in infos.items() for each in info]
        entries['annotations'] = objects
    file.findings += _check_conversion(path, content.get('info'))
    malformed = list(_check_keys(path, entries))
    file.findings += malformed
    if malformed:
        return file
    file.findings += _check_ids(file, entries)
    file.images = {
        each['id']: (each['file_name'], each['width'], each['height']) for each in entries['images']
    }
    file.names = {each['id']: each['name'] for each in entries['categories']}
    file.num_objects = Counter(each['category_id'] for each in objects)
    file.findings += _check_names(file)
    objects = [each for each in objects if each['image_id'] in file.images]
    malformed = list(_check_images(file))
    file.findings += malformed
    if objects and not malformed:
        check_boxes(file, objects)
        if file.segments is None:
            check_segmentations(file, objects)
    return file


def _check_conversion(path: str, info: Any) -> Iterator[Finding]:
    """Report the objects that tools/convert_voc.py could not convert."""
    skipped = info.get('left_out') if isinstance(info, dict) else None
    if isinstance(skipped, list) and skipped:
        message = 'objects that were left out when the file was made'
        remedy = 'correct the original annotations and convert them again, or train without these objects'
        yield Finding.counted('left out at conversion', path, message, remedy, skipped, severity=WARNING)


def _check_keys(path: str, entries: dict[str, list[dict]]) -> Iterator[Finding]:
    for kind, keys in REQUIRED_KEYS.items():
        items = entries[kind]
        if not isinstance(items, list) or not all(isinstance(each, dict) for each in items):
            statement = f'its {kind!r} is not a list of JSON objects'
            yield Finding.stated('malformed list', path, statement, f'rewrite {kind!r}')
            return
        if not items and kind != 'annotations':
            yield Finding.stated(f'no {kind}', path, f'it has no {kind}', f'add {kind!r}')
        for key in keys:
            lacking = [f'number {index}' for index, each in enumerate(items) if key not in each]
            if lacking:
                remedy = f'add {key!r} to each'
                if key == 'area':
                    remedy += (
                        ': the number of pixels of its mask or, without masks, width x height of its box'
                    )
                yield Finding.counted(f'no {key}', path, f'{kind} without {key!r}', remedy, lacking)


def _check_ids(file: CocoFile, entries: dict[str, list[dict]]) -> Iterator[Finding]:
    """Check that ids are unique, and that the ids that objects refer to exist.

    Of two images (or categories) with the same id, pycocotools keeps the last, with the objects of both.
    """
    ids = {kind: Counter(each['id'] for each in items) for kind, items in entries.items()}
    for kind, counts in ids.items():
        if file.segments is not None and kind == 'annotations':
            continue  # ids of segments are unique only within their image
        for number, count in counts.most_common(1):
            if count > 1:
                message, remedy = f'{kind} have the id {number!r}', 'give each a unique id'
                yield Finding.counted(f'duplicate id of {kind}', file.path, message, remedy, count=count)
    objects = entries['annotations']
    for kind, key in (('categories', 'category_id'), ('images', 'image_id')):
        unknown = [repr(each[key]) for each in objects if each[key] not in ids[kind]]
        if unknown:
            message = f'annotations whose {key} is not the id of any of the {kind}'
            severity, remedy = WARNING, 'they are left out'
            if kind == 'categories' or len(unknown) > MAJORITY * len(objects):
                severity, remedy = ERROR, f'use the ids of {kind}, such as {next(iter(ids[kind]))!r}'
            yield Finding.counted(f'unknown {key}', file.path, message, remedy, unknown, severity=severity)


def _check_names(file: CocoFile) -> Iterator[Finding]:
    for name, count in Counter(file.names.values()).items():
        if count > 1:
            message = f'categories have the name {name!r}'
            remedy = 'give all objects of the class the same category_id, and remove the other categories'
            yield Finding.counted('duplicate category name', file.path, message, remedy, count=count)
    counts = Counter(name for name, *_ in file.images.values())
    if repeated := [name for name, count in counts.items() if count > 1]:
        message = 'files that are listed as several images, each with only some of the objects'
        remedy = 'give all objects of a file the same image_id'
        yield Finding.counted('duplicate file_name', file.path, message, remedy, repeated, severity=WARNING)


def _check_images(file: CocoFile) -> Iterator[Finding]:
    images = file.images.values()
    if names := [repr(name) for name, _, _ in images if not isinstance(name, str)]:
        message, remedy = "images whose 'file_name' is not a string", 'write the names of their files'
        yield Finding.counted('no file_name', file.path, message, remedy, names)
    sizes = [
        f'{name} with {width!r} x {height!r}'
        for name, width, height in images
        if not all(isinstance(side, int | float) and side > 0 for side in (width, height))
    ]
    if sizes:
        remedy = 'write the width and height of the file in pixels'
        yield Finding.counted('no size', file.path, 'images without a valid size', remedy, sizes)
