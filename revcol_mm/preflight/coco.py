"""What is wrong in annotation files in COCO's format, which pycocotools and MMDetection take without a word.

Letters: N objects.
"""

import os
from collections import Counter
from contextlib import contextmanager
from typing import Any, Iterable, Iterator, Sequence

import numpy as np
from mmengine.evaluator import BaseMetric
from torch.utils.data import Dataset

from .findings import ERROR, MAX_EXAMPLES, WARNING, Findings, report

MOST = 0.5  # share of the objects from which on a training on the rest is worthless
TOLERANCE = 1  # pixels by which boxes of tools that round may reach beyond the image
NEEDED = dict(
    images=('id', 'file_name', 'height', 'width'),
    categories=('id', 'name'),
    annotations=('id', 'image_id', 'category_id', 'bbox', 'area'),
)
CONVERT = 'MMDetection takes [x, y, width, height] in pixels: convert them'
LEFT_OUT = 'they are left out'
DELETE = 'take them out: each is learnt, and missed in evaluation, as an object'


class CocoFile:
    """An annotation file that was read: what it names, and what is wrong with it whatever it is used for.

    Args:
        path: The file's name, for messages.
        content: Its images, categories and annotations; of a panoptic file, its segments are the objects.

    Attributes:
        images: File name, width and height by id.
        names: Name of each category by id, in the file's order, which is that of MMDetection's labels.
        num_objects: Number of objects by id of the category.
        findings: What is wrong before anything can be made of it.
        box_findings: What is wrong where boxes are trained on, or evaluated.
        mask_findings: What is wrong where masks are trained on.
        evaluated_mask_findings: What is wrong where masks are evaluated.
        segments: Of a panoptic file, ids of an image's segments by the image's id; else None.
        lacks_iscrowd: Number of objects without ``iscrowd``, which pycocotools demands in evaluation.
    """

    def __init__(self, path: str, content: dict[str, Any]) -> None:
        self.path = path
        self.images, self.names, self.num_objects = {}, {}, Counter()
        self.findings, self.box_findings = Findings(), Findings()
        self.mask_findings, self.evaluated_mask_findings = Findings(), Findings()
        self.lacks_iscrowd = 0
        images, categories, objects = (content.get(kind) or [] for kind in NEEDED)
        self.segments = None
        if isinstance(objects, list) and objects and 'segments_info' in objects[0]:
            infos = {image['image_id']: image['segments_info'] for image in objects}
            self.segments = {
                image: frozenset(each['id'] for each in segments) for image, segments in infos.items()
            }
            objects = [{**each, 'image_id': image} for image, segments in infos.items() for each in segments]
        self._check_left_out(content.get('info'))
        entries = dict(images=images, categories=categories, annotations=objects)
        if not self._has_keys(entries):
            return
        self._check_ids(entries)
        self.images = {each['id']: (each['file_name'], each['width'], each['height']) for each in images}
        self.names = {each['id']: each['name'] for each in categories}
        self.num_objects = Counter(each['category_id'] for each in objects)
        self._check_names()
        objects = [each for each in objects if each['image_id'] in self.images]
        if not self._check_sizes() or not objects:
            return
        self._check_boxes(objects)
        if self.segments is None:
            self._check_segmentations(objects)
            self.lacks_iscrowd = sum('iscrowd' not in each for each in objects)

    def _add(self, kind: str, message: str, remedy: str, *args: Any, **kwargs: Any) -> None:
        self.findings.add(kind, self.path, message, remedy, *args, **kwargs)

    def _add_clause(self, kind: str, clause: str, remedy: str) -> None:
        self._add(kind, clause, remedy, [clause], in_clauses=True)

    def _has_keys(self, entries: dict[str, list[dict]]) -> bool:
        complete = True
        for kind, keys in NEEDED.items():
            if not isinstance(entries[kind], list) or not all(
                isinstance(each, dict) for each in entries[kind]
            ):
                self._add_clause(
                    'malformed list', f'its {kind!r} are no list of objects', f'write {kind!r} anew'
                )
                return False
            for key in keys:
                without = [f'number {index}' for index, each in enumerate(entries[kind]) if key not in each]
                if without:
                    complete = False
                    remedy = f'write {key!r} to each'
                    if key == 'area':
                        remedy += ": its mask's number of pixels, or without masks width x height of its box"
                    self._add(f'no {key}', f'{kind} without {key!r}', remedy, without)
        for kind in ('images', 'categories'):
            if not entries[kind]:
                complete = False
                self._add_clause(f'no {kind}', f'it has no {kind}', f'write {kind!r}')
        return complete

    def _check_left_out(self, info: Any) -> None:
        """What tools/convert_voc.py found in the original, and nobody could find here."""
        left_out = info.get('left_out') if isinstance(info, dict) else None
        if isinstance(left_out, list) and left_out:
            self._add(
                'left out at conversion',
                'objects that were left out when the file was made',
                'mend the original and convert it again; without that they stay left out',
                [str(each) for each in left_out],
                severity=WARNING,
            )

    def _check_ids(self, entries: dict[str, list[dict]]) -> None:
        """Of two images (or categories) of one id pycocotools keeps the last, with the objects of both."""
        ids = {kind: Counter(each['id'] for each in entries[kind]) for kind in NEEDED}
        for kind, counts in ids.items():
            if self.segments is not None and kind == 'annotations':
                continue  # ids of segments, unique in their image
            for number, times in counts.most_common(1):
                if times > 1:
                    self._add(
                        f'{kind} of one id',
                        f'{kind} have the id {number!r}',
                        'give each an id of its own',
                        count=times,
                    )
        objects = entries['annotations']
        for kind, field in (('categories', 'category_id'), ('images', 'image_id')):
            strays = [each[field] for each in objects if each[field] not in ids[kind]]
            if strays:
                is_error = kind == 'categories' or len(strays) > MOST * len(objects)
                known = next(iter(ids[kind]), None)
                self._add(
                    f'{field} of none',
                    f'annotations whose {field} is none of the {kind}',
                    f'ids of {kind} are such as {known!r}: write these' if is_error else LEFT_OUT,
                    [repr(stray) for stray in strays],
                    severity=ERROR if is_error else WARNING,
                )

    def _check_names(self) -> None:
        for name, times in Counter(self.names.values()).items():
            if times > 1:
                self._add(
                    'categories of one name',
                    f'categories have the name {name!r}',
                    'give all objects of a class one category_id, and take the other out',
                    count=times,
                )
        twice = [name for name, n in Counter(name for name, *_ in self.images.values()).items() if n > 1]
        if twice:
            self._add(
                'images of one file',
                'files that are several images, of which each lacks the objects of the others',
                'give all objects of a file one image_id',
                twice,
                severity=WARNING,
            )

    def _check_sizes(self) -> bool:
        """Whether every image has a name and a size."""
        names = [repr(name) for name, _, _ in self.images.values() if not isinstance(name, str)]
        if names:
            self._add('no file_name', "images whose 'file_name' is no text", 'write their names', names)
        wrong = [
            f'{name} with {width!r} x {height!r}'
            for name, width, height in self.images.values()
            if not (isinstance(width, int | float) and isinstance(height, int | float))
            or not (width > 0 and height > 0)
        ]
        if wrong:
            self._add(
                'no size', 'images without a size', "write the file's width and height in pixels", wrong
            )
        return not wrong and not names

    def _check_boxes(self, objects: list[dict]) -> None:
        boxes, areas = (_numbers([each[key] for each in objects]) for key in ('bbox', 'area'))
        if boxes is None or boxes.shape != (len(objects), 4):
            wrong = [each for each in objects if (box := _numbers(each['bbox'])) is None or box.shape != (4,)]
            wrong = [f'{each["bbox"]!r} of annotation {each["id"]}' for each in wrong]
            self._add('malformed box', 'boxes that are not 4 numbers', CONVERT, wrong)
            return
        if areas is None or areas.shape != (len(objects),):
            self._add_clause('malformed area', "an object's area is no number", 'write numbers')
            return
        order = {image: index for index, image in enumerate(self.images)}
        index = np.fromiter((order[each['image_id']] for each in objects), int, len(objects))
        sizes = np.array([(width, height) for _, width, height in self.images.values()], float)[index]
        first, lengths = boxes[:, :2], boxes[:, 2:]  # (N, 2) all: x and y
        last = first + lengths
        num_objects = len(objects)

        def add(kind: str, where: np.ndarray, message: str, remedy: str, severity: str = ERROR) -> None:
            places = np.flatnonzero(where).tolist()
            if places:
                examples = [self._describe(objects[place]) for place in places[:MAX_EXAMPLES]]
                count = len(places)
                self.box_findings.add(kind, self.path, message, remedy, examples, count, severity)

        scaled = ((boxes >= 0) & (boxes <= 1)).all(1) & (sizes > 2).all(1)
        if scaled.sum() > MOST * num_objects:
            return add('boxes from 0 to 1', scaled, "boxes as shares of the image's sides", CONVERT)
        beyond = ((first < -TOLERANCE) | (last > sizes + TOLERANCE)).any(1)
        corners = ((lengths > first) & (lengths <= sizes + TOLERANCE)).all(1)
        # Where the numbers are x1 y1 x2 y2, the last two are the greater ones everywhere, and reach beyond.
        if beyond.mean() > 0.1 and corners.mean() > 0.95:
            return add('corners for boxes', beyond, 'boxes that are [x1, y1, x2, y2], it seems', CONVERT)

        # What MMDetection leaves out, in its order.
        not_numbers = ~np.isfinite(boxes).all(1)
        with np.errstate(invalid='ignore'):
            inside = np.minimum(last, sizes) - np.maximum(first, 0)
            reasons = {
                'NaN in boxes': (not_numbers, 'boxes that are no numbers'),
                'empty boxes': ((lengths < 1).any(1), 'boxes of less than a pixel'),
                'boxes outside': ((inside <= 0).any(1), 'boxes outside of their image'),
                'no area': (~(areas > 0), 'objects whose area is not positive'),
            }
        categories = {number: index for index, number in enumerate(self.names)}
        label = np.fromiter((categories.get(each['category_id'], -1) for each in objects), int, num_objects)
        repeated = _repeated(np.column_stack((index, label, boxes)))
        add('boxes twice', repeated, 'boxes that their image has before, of the same class', DELETE, WARNING)
        crowd = np.fromiter((bool(each.get('iscrowd') or each.get('ignore')) for each in objects), bool)
        dropped = np.any([where for where, _ in reasons.values()], axis=0)
        severity = ERROR if dropped.mean() > MOST else WARNING
        seen = np.zeros(num_objects, bool)
        for kind, (where, message) in reasons.items():
            remedy = f'{LEFT_OUT}, {dropped.sum()} of {num_objects} in all'
            if severity == ERROR:
                remedy = f'{CONVERT} ({dropped.sum()} of {num_objects} objects are of no use)'
            add(kind, where & ~seen, message, remedy, severity)
            seen |= where
        beyond &= ~dropped
        if beyond.any():
            most = beyond.mean() > MOST
            remedy = (
                "are width and height those of the file, and the boxes' in its pixels?"
                if most
                else ('they are trained on as they are')
            )
            add(
                'boxes beyond',
                beyond,
                'boxes that reach beyond their image',
                remedy,
                ERROR if most else WARNING,
            )
        if crowd.any():
            most = crowd.mean() > MOST
            remedy = (
                "a model does not learn them (CVAT writes masks so): write 'iscrowd': 0 for single objects"
                if most
                else 'a model does not learn them'
            )
            add('crowds', crowd, "objects with 'iscrowd' or 'ignore'", remedy, ERROR if most else WARNING)

    def _describe(self, each: dict[str, Any]) -> str:
        name, width, height = self.images[each['image_id']]
        return f'{each["bbox"]} of annotation {each["id"]} in {name} of {width:g} x {height:g} pixels'

    def _check_segmentations(self, objects: list[dict]) -> None:
        none, malformed, other_size, short, unevaluable = [], [], [], [], []
        for each in objects:
            segmentation = each.get('segmentation')
            if not segmentation:
                none.append(each)
            elif isinstance(segmentation, dict):
                _, width, height = self.images[each['image_id']]
                if not isinstance(segmentation.get('counts'), list | str):
                    malformed.append(each)
                elif segmentation.get('size') != [height, width]:
                    other_size.append(each)
            elif not isinstance(segmentation, list) or set(map(type, segmentation)) != {list}:
                malformed.append(each)
            else:
                counts = list(map(len, segmentation))
                if min(counts) < 6 or any([count % 2 for count in counts]):  # noqa: C419  twice as fast
                    short.append(each)
                    if counts[0] < 6:  # which pycocotools takes for a box, or for nothing
                        unevaluable.append(each)

        def add(
            kind: str, found: list[dict], message: str, remedy: str, trained: str, evaluated: str
        ) -> None:
            if not found:
                return
            some = found[:MAX_EXAMPLES]
            examples = [f'annotation {each["id"]} of {self.images[each["image_id"]][0]}' for each in some]
            for findings, severity in (
                (self.mask_findings, trained),
                (self.evaluated_mask_findings, evaluated),
            ):
                findings.add(kind, self.path, message, remedy, examples, len(found), severity)

        add(
            'no segmentation',
            none,
            "objects without a mask ('segmentation' is empty or not there)",
            'draw their masks or take them out, or train and evaluate boxes alone',
            ERROR,
            ERROR,
        )
        add(
            'malformed segmentation',
            malformed,
            'segmentations that are neither lists of polygons, [[x, y, x, y, x, y], ...], nor RLE',
            'convert them',
            ERROR,
            ERROR,
        )
        add(
            'RLE of another size',
            other_size,
            "segmentations by RLE whose size is not their image's [height, width]",
            'are its width and height those of the file? else encode the masks in its size',
            ERROR,
            ERROR,
        )
        add(
            'polygon of less than 3 points',
            short,
            'segmentations with polygons of less than 3 points, or an odd count of numbers',
            'take out these polygons',
            ERROR if len(short) > MOST * len(objects) else WARNING,
            ERROR if unevaluable else WARNING,
        )


def _numbers(values: Any) -> np.ndarray | None:
    """Values as an array of float64; None if they are not numbers, or lists of unequal lengths."""
    try:
        array = np.asarray(values)
    except ValueError:
        return None
    return array.astype(float) if array.dtype.kind in 'iuf' else None


def _repeated(rows: np.ndarray) -> np.ndarray:
    """Which rows, of float64, are there before; in seconds less than by ``np.unique(axis=0)``."""
    sums = (rows * np.random.default_rng(0).random(rows.shape[1])).sum(1)
    order = np.argsort(sums, kind='stable')
    repeated = np.zeros(len(rows), bool)
    repeated[order[1:]] = (rows[order[1:]] == rows[order[:-1]]).all(1)
    return repeated


@contextmanager
def annotation_files(strict: bool = True) -> Iterator[dict[str, CocoFile]]:
    """Check every annotation file that pycocotools reads in this block.

    MMDetection's data sets read theirs, hundreds of megabytes, once, and drop what they read.

    Args:
        strict: Whether findings are reported at the end of the block, by :func:`report`; also in place of an
            exception in it that comes of them.

    Yields:
        The files by path, filled as they are read.

    Raises:
        ValueError: If a file is no annotation file, with its name.
        PreflightError: If it is ``strict`` and there are errors.
    """
    files = {}
    try:
        from pycocotools.coco import COCO
    except ImportError:  # no detection here
        yield files
        return
    read = COCO.__init__

    def read_and_check(self: COCO, annotation_file: str | None = None) -> None:
        failure = None
        try:
            read(self, annotation_file)
        except Exception as error:  # of anything that is no annotation file, or lacks what its index needs
            failure = error
        try:
            if annotation_file is not None and self.dataset:
                files[annotation_file] = CocoFile(annotation_file, self.dataset)
        except Exception as error:  # of values that are nothing like COCO's
            failure = failure or error
        if failure is not None:
            raise ValueError(f'{annotation_file}: {type(failure).__name__}: {failure}') from failure

    COCO.__init__ = read_and_check
    try:
        yield files
    except Exception:
        if strict:
            report(finding for file in files.values() for finding in file.findings)
        raise
    finally:
        COCO.__init__ = read
    if strict:
        report(finding for file in files.values() for finding in file.findings)


def check_classes(name: str, dataset: Dataset, file: CocoFile | None) -> Findings:
    """Compare a data set's classes with the categories of its annotation file.

    Args:
        name: What the data set is called in messages.
        dataset: The data set. Its ``cat_ids`` are the category of each label.
        file: Its annotation file, if pycocotools has read it.
    """
    findings = Findings()
    classes = dataset.metainfo['classes']
    found = getattr(dataset, 'cat_ids', None)
    if found is None:
        return findings
    if len(found) != len(classes):
        clause = f'of {len(classes)} classes only {len(found)} are categories of its annotation file'
        remedy = 'set metainfo=dict(classes=...) to the names there'
        twice = [each for each, times in Counter(classes).items() if times > 1]
        clause += f', and {listed(twice, 5)} is there twice' if twice and file else ''
        if file:
            missing = [each for each in classes if each not in file.names.values()]
            clause += f', not {listed(missing)}' if missing else ''
            remedy += f', {listed(file.names.values())}'
        findings.add('class without a category', name, clause, remedy, [clause], in_clauses=True)
    elif file:
        findings.extend(_check_order(name, classes, file, [file.names[each] for each in found]))
    others = set(getattr(dataset, 'cat_img_map', ())) - set(found)
    if others:
        findings.add(
            'category that is no class',
            name,
            'categories of its annotation file are none of the classes',
            'their objects are left out',
            count=len(others),
            severity=WARNING,
        )
    return findings


def _check_order(name: str, classes: Sequence[str], file: CocoFile, names: list[str]) -> Findings:
    """Compare the names that labels have by ``metainfo`` with those by a file.

    MMDetection looks categories up by the names of the classes, but numbers them in the file's order.
    """
    findings = Findings()
    for label, (by_class, by_file) in enumerate(zip(classes, names)):
        if by_class != by_file:
            clause = (
                f'label {label} is {by_class!r} by metainfo.classes, but {by_file!r} by the order of the '
                f'categories in {file.path}, which MMDetection trains and evaluates by'
            )
            remedy = f'write both in one order; the order there is {listed(names)}'
            findings.add('order of classes', name, clause, remedy, [clause], in_clauses=True)
            break
    return findings


def listed(names: Iterable[str], most: int = 20) -> str:
    names = [repr(name) for name in names]
    return ', '.join(names[:most]) + (f' and {len(names) - most} more' if len(names) > most else '')


def check_evaluator(
    place: str, metric: BaseMetric, config: dict, dataset: Dataset, name: str, file: CocoFile | None
) -> Findings:
    """Compare a metric that has read an annotation file with the data set that it evaluates on.

    Objects without ``iscrowd``, which pycocotools demands, get 0 in memory.

    Args:
        place: Key of the metric in the config.
        metric: The metric.
        config: Its config.
        dataset: The data set.
        name: What the data set is called in messages.
        file: The data set's annotation file, if pycocotools has read it.
    """
    findings = Findings()
    coco = getattr(metric, '_coco_api', None)
    if coco is None:
        return findings
    path = str(config.get('ann_file') or f'the file of {place}')
    same = file is not None and os.path.realpath(path) == os.path.realpath(file.path)
    own = CocoFile(path, coco.dataset)
    findings.extend(own.findings)
    findings.extend(own.box_findings)
    if 'segm' in getattr(metric, 'metrics', ()):
        findings.extend(own.evaluated_mask_findings)
    if own.lacks_iscrowd:
        for each in coco.dataset['annotations']:
            each.setdefault('iscrowd', 0)
        findings.add(
            'no iscrowd',
            path,
            "annotations without 'iscrowd'",
            'they are evaluated as single objects, as with 0',
            count=own.lacks_iscrowd,
            severity=WARNING,
        )
    if any(each.get('id') == 0 for each in coco.dataset.get('annotations', ())):  # of which there is one
        findings.add(
            'annotation of id 0',
            path,
            'annotations have the id 0, which pycocotools counts as never found',
            'number them from 1',
            severity=WARNING,
        )
    if not own.num_objects and not getattr(metric, 'format_only', False):
        clause = 'it has no objects to evaluate on'
        findings.add('no objects', path, clause, 'annotate them', [clause], in_clauses=True)
    classes = dataset.metainfo['classes']
    if own.segments is None:  # of a panoptic data set, boxes and masks are of things
        classes = dataset.metainfo.get('thing_classes', classes)
    names = [each for each in own.names.values() if each in set(classes)]
    # Of the data set's own file, what is wrong with its order is told there.
    expected = [own.names.get(each) for each in getattr(dataset, 'cat_ids', ())] if same else classes
    if len(names) != len(classes):
        missing = [each for each in classes if each not in names]
        clause = f'classes are no categories of {path}: {listed(missing)}'
        findings.add('class without a category', place, clause, 'write them there', [clause], in_clauses=True)
    else:
        findings.extend(_check_order(place, expected, own, names))
    findings.extend(_compare_images(place, own, dataset, name, file, same))
    return findings


def _compare_images(
    place: str, own: CocoFile, dataset: Dataset, name: str, file: CocoFile | None, same: bool
) -> Findings:
    """AP counts all images of the evaluator's file: those that are not loaded as without predictions."""
    findings = Findings()
    if file is None:
        return findings
    others = [each for each, image in file.images.items() if own.images.get(each) != image]
    if not same and (others or len(own.images) != len(file.images)):
        clause = (
            f'{own.path} has other images ({len(own.images)}) than {file.path} ({len(file.images)}), '
            'which the data set reads'
        )
        remedy = f"set {place}.ann_file to the data set's"
        findings.add('images of the evaluator', place, clause, remedy, [clause], in_clauses=True)
    elif len(dataset) < len(own.images):
        clause = f'{own.path} has {len(own.images)} images, of which {name} loads {len(dataset)}'
        remedy = 'the others count as if nothing were found on them'
        findings.add(
            'images of the evaluator', place, clause, remedy, [clause], severity=WARNING, in_clauses=True
        )
    return findings
