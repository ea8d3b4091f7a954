"""Check the boxes of an annotation file in COCO's format."""

from typing import Any, NamedTuple

import numpy as np

from .coco_file import CocoFile
from .findings import ERROR, MAJORITY, MAX_EXAMPLES, WARNING, Finding

TOLERANCE = 1  # pixels by which a rounded box may reach beyond the image
CONVERT = 'MMDetection needs [x, y, width, height] in pixels: convert them'


class Boxes(NamedTuple):
    """Boxes of N objects as arrays.

    Args:
        file: The annotation file, to which findings are added.
        objects: Entries of its ``annotations``.
        boxes: x, y, width and height of each box in pixels, (N, 4).
        areas: The ``area`` of each object, (N,).
        image_index: Index of each object's image, (N,).
        sizes: Width and height of each object's image in pixels, (N, 2).
    """

    file: CocoFile
    objects: list[dict]
    boxes: np.ndarray
    areas: np.ndarray
    image_index: np.ndarray
    sizes: np.ndarray

    @property
    def first(self) -> np.ndarray:
        """Left and top of each box, (N, 2)."""
        return self.boxes[:, :2]

    @property
    def lengths(self) -> np.ndarray:
        """Width and height of each box, (N, 2)."""
        return self.boxes[:, 2:]

    @property
    def beyond(self) -> np.ndarray:
        """Whether each box reaches beyond its image, (N,)."""
        last = self.first + self.lengths
        return ((self.first < -TOLERANCE) | (last > self.sizes + TOLERANCE)).any(1)

    def add(self, kind: str, mask: np.ndarray, message: str, remedy: str, severity: str = ERROR) -> None:
        """Add a finding for the boxes that ``mask`` (N,) selects, if there are any."""
        indices = np.flatnonzero(mask).tolist()
        if indices:
            examples = [self._describe(self.objects[index]) for index in indices[:MAX_EXAMPLES]]
            self.file.box_findings.append(
                Finding.counted(kind, self.file.path, message, remedy, examples, len(indices), severity)
            )

    def _describe(self, each: dict[str, Any]) -> str:
        name, width, height = self.file.images[each['image_id']]
        return f'{each["bbox"]} of annotation {each["id"]} in {name} of {width:g} x {height:g} pixels'


def check_boxes(file: CocoFile, objects: list[dict]) -> None:
    """Check the boxes of objects, and add the problems to ``file.box_findings``.

    Malformed boxes and areas are added to ``file.findings``, because MMDetection cannot read such a file.

    Args:
        file: The annotation file.
        objects: Entries of its ``annotations`` whose images exist.
    """
    boxes, areas = (_numbers([each[key] for each in objects]) for key in ('bbox', 'area'))
    if boxes is None or boxes.shape != (len(objects), 4):
        wrong = [
            f'{each["bbox"]!r} of annotation {each["id"]}'
            for each in objects
            if (box := _numbers(each['bbox'])) is None or box.shape != (4,)
        ]
        message = 'boxes that are not 4 numbers'
        file.findings.append(Finding.counted('malformed box', file.path, message, CONVERT, wrong))
        return
    if areas is None or areas.shape != (len(objects),):
        statement, remedy = "the 'area' of an object is not a number", 'write numbers'
        file.findings.append(Finding.stated('malformed area', file.path, statement, remedy))
        return
    order = {image: index for index, image in enumerate(file.images)}
    index = np.fromiter((order[each['image_id']] for each in objects), int, len(objects))
    sizes = np.array([(width, height) for _, width, height in file.images.values()], float)[index]
    checked = Boxes(file, objects, boxes, areas, index, sizes)
    if _has_pixel_lengths(checked):
        _check_duplicates(checked)
        dropped = _check_dropped(checked)
        _check_beyond(checked, checked.beyond & ~dropped)
        _check_crowds(checked)


def _numbers(values: Any) -> np.ndarray | None:
    """Return values as a float64 array, or None if they are not numbers, or lists of unequal lengths."""
    try:
        array = np.asarray(values)
    except ValueError:
        return None
    return array.astype(float) if array.dtype.kind in 'iuf' else None


def _has_pixel_lengths(checked: Boxes) -> bool:
    """Check that boxes are neither normalized to the image nor given by their corners."""
    boxes, sizes, first, lengths = checked.boxes, checked.sizes, checked.first, checked.lengths
    normalized = ((boxes >= 0) & (boxes <= 1)).all(1) & (sizes > 2).all(1)
    if normalized.mean() > MAJORITY:
        message = "boxes as fractions of the image's width and height"
        checked.add('normalized boxes', normalized, message, CONVERT)
        return False
    # If the numbers are x1 y1 x2 y2, the last two are the larger ones nearly everywhere, but are inside of
    # the image, while x + width or y + height is often outside.
    beyond = checked.beyond
    corners = ((lengths > first) & (lengths <= sizes + TOLERANCE)).all(1)
    if beyond.mean() > 0.1 and corners.mean() > 0.95:
        checked.add('boxes as corners', beyond, 'boxes that seem to be [x1, y1, x2, y2]', CONVERT)
        return False
    return True


def _check_duplicates(checked: Boxes) -> None:
    order = {category: index for index, category in enumerate(checked.file.names)}
    labels = (order.get(each['category_id'], -1) for each in checked.objects)
    labels = np.fromiter(labels, int, len(checked.objects))
    repeated = _repeated(np.column_stack((checked.image_index, labels, checked.boxes)))
    message = 'boxes that repeat an earlier box of the same image and class'
    remedy = 'remove them: each is learnt, and missed in evaluation, as another object'
    checked.add('duplicate boxes', repeated, message, remedy, WARNING)


def _repeated(rows: np.ndarray) -> np.ndarray:
    """Return which rows occur before. Seconds faster than ``np.unique(axis=0)`` on a large data set."""
    hashes = (rows * np.random.default_rng(0).random(rows.shape[1])).sum(1)
    order = np.argsort(hashes, kind='stable')
    repeated = np.zeros(len(rows), bool)
    repeated[order[1:]] = (rows[order[1:]] == rows[order[:-1]]).all(1)
    return repeated


def _check_dropped(checked: Boxes) -> np.ndarray:
    """Report the boxes that MMDetection leaves out, each under the first reason in MMDetection's order.

    Returns:
        Which boxes are left out, (N,).
    """
    first, lengths, num_objects = checked.first, checked.lengths, len(checked.objects)
    with np.errstate(invalid='ignore'):
        inside = np.minimum(first + lengths, checked.sizes) - np.maximum(first, 0)
        reasons = {
            'non-finite boxes': (~np.isfinite(checked.boxes).all(1), 'boxes with NaN or infinity'),
            'empty boxes': ((lengths < 1).any(1), 'boxes whose width or height is less than a pixel'),
            'boxes outside': ((inside <= 0).any(1), 'boxes outside of their image'),
            'no area': (~(checked.areas > 0), 'objects whose area is not positive'),
        }
    dropped = np.any([mask for mask, _ in reasons.values()], axis=0)
    severity, remedy = WARNING, f'they are left out, {dropped.sum()} of {num_objects} objects in all'
    if dropped.mean() > MAJORITY:
        severity, remedy = ERROR, f'{CONVERT} ({dropped.sum()} of {num_objects} objects are unusable)'
    seen = np.zeros(num_objects, bool)
    for kind, (mask, message) in reasons.items():
        checked.add(kind, mask & ~seen, message, remedy, severity)
        seen |= mask
    return dropped


def _check_beyond(checked: Boxes, beyond: np.ndarray) -> None:
    severity, remedy = WARNING, 'they are trained on as they are'
    if beyond.mean() > MAJORITY:
        severity = ERROR
        remedy = 'check that width and height are those of the file, and that boxes are in its pixels'
    checked.add('boxes beyond', beyond, 'boxes that reach beyond their image', remedy, severity)


def _check_crowds(checked: Boxes) -> None:
    crowds = np.array([bool(each.get('iscrowd') or each.get('ignore')) for each in checked.objects])
    severity, remedy = WARNING, 'models do not learn them'
    if crowds.mean() > MAJORITY:
        severity = ERROR
        remedy += " (CVAT exports masks this way): write 'iscrowd': 0 for single objects"
    checked.add('crowds', crowds, "objects with 'iscrowd' or 'ignore'", remedy, severity)
