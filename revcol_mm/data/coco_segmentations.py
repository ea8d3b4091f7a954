"""Check the segmentations of an annotation file in COCO's format."""

from dataclasses import replace
from typing import Any

from .coco_file import CocoFile
from .findings import ERROR, MAJORITY, MAX_EXAMPLES, WARNING, Finding

# Message and remedy of each kind of problem
PROBLEMS = {
    'no segmentation': (
        "objects without a mask ('segmentation' is empty or missing)",
        'draw their masks or remove the objects, or train and evaluate boxes only',
    ),
    'malformed segmentation': (
        'segmentations that are neither lists of polygons, [[x, y, x, y, x, y], ...], nor RLE',
        'convert them',
    ),
    'RLE size': (
        "RLE segmentations whose size is not their image's [height, width]",
        'correct width and height of the image, or encode the masks in the size of the file',
    ),
    'polygon of less than 3 points': (
        'segmentations with a polygon of less than 3 points or an odd number of coordinates',
        'remove these polygons',
    ),
}


def check_segmentations(file: CocoFile, objects: list[dict]) -> None:
    """Check the segmentations of objects.

    The problems are added to ``file.mask_findings`` and ``file.evaluated_mask_findings``.

    Args:
        file: The annotation file.
        objects: Entries of its ``annotations`` whose images exist.
    """
    found = {kind: [] for kind in PROBLEMS}
    for each in objects:
        kind = _problem(each.get('segmentation'), file.images[each['image_id']])
        if kind:
            found[kind].append(each)
    for kind, wrong in found.items():
        if not wrong:
            continue
        in_training = in_evaluation = ERROR
        if kind == 'polygon of less than 3 points':
            # MMDetection drops short polygons in training. In evaluation, pycocotools takes a first polygon
            # of 4 numbers for a box, and fails on a shorter one.
            in_training = ERROR if len(wrong) > MAJORITY * len(objects) else WARNING
            in_evaluation = ERROR if any(len(each['segmentation'][0]) < 6 for each in wrong) else WARNING
        examples = [
            f'annotation {each["id"]} of {file.images[each["image_id"]][0]}' for each in wrong[:MAX_EXAMPLES]
        ]
        finding = Finding.counted(kind, file.path, *PROBLEMS[kind], examples, len(wrong), in_training)
        file.mask_findings.append(finding)
        file.evaluated_mask_findings.append(replace(finding, severity=in_evaluation))


def _problem(segmentation: Any, image: tuple[str, float, float]) -> str | None:
    """Return the kind of problem of a segmentation, or None."""
    if not segmentation:
        return 'no segmentation'
    if isinstance(segmentation, dict):
        _, width, height = image
        if not isinstance(segmentation.get('counts'), list | str):
            return 'malformed segmentation'
        return None if segmentation.get('size') == [height, width] else 'RLE size'
    if not isinstance(segmentation, list) or set(map(type, segmentation)) != {list}:
        return 'malformed segmentation'
    lengths = list(map(len, segmentation))
    if min(lengths) < 6 or any([length % 2 for length in lengths]):  # noqa: C419  twice as fast as a generator
        return 'polygon of less than 3 points'
    return None
