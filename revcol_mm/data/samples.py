"""What is wrong with an image and its mask: unreadable, of another size, with labels that are no classes."""

import hashlib
import os
from typing import NamedTuple

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from revcol_mm.panopticapi.evaluation import VOID
from revcol_mm.panopticapi.utils import rgb2id

IGNORE_INDEX = 255  # MMSegmentation's default, and what its reduce_zero_label and label_map write


class Sample(NamedTuple):
    """An image of a data set, as far as it can be told without reading it.

    Args:
        image: Its file.
        mask: The file of its segmentation mask, if there is one.
        size: Its width and height by an annotation file.
        label: Its class, of images that are classified.
        segments: Ids of its segments by an annotation file, of a panoptic mask.
    """

    image: str | None
    mask: str | None = None
    size: tuple[int, int] | None = None
    label: int | None = None
    segments: frozenset[int] | None = None


class Reading(NamedTuple):
    """How samples are to be read.

    Args:
        decode: Whether pixels of images are decoded, and files hashed; else their headers are read.
        turns: Whether images are turned as their EXIF data say, as OpenMMLab does by default.
        num_classes: Of masks.
        ignore_index: The label that is left out.
        reduce_zero_label: As in MMSegmentation.
        label_map: New labels by old ones, as in MMSegmentation.
    """

    decode: bool = False
    turns: bool = True
    num_classes: int = 0
    ignore_index: int = IGNORE_INDEX
    reduce_zero_label: bool = False
    label_map: dict[int, int] | None = None


class Look(NamedTuple):
    """What a sample shows.

    Args:
        problems: Kind of each, and a clause that names the file.
        labels: Labels of the mask, as trained on, in ascending order.
        digest: Hash of the image's file, if it was decoded.
    """

    problems: list[tuple[str, str]]
    labels: list[int] | None = None
    digest: bytes | None = None


# What each kind means, as a noun phrase, and its remedy.
KINDS = {
    'broken image': ('images that cannot be read', 'mend or take it out'),
    'broken mask': ('masks that cannot be read', 'mend it or take it out'),
    'image size': (
        'images of another size than by the annotation file',
        'write width and height, and boxes, of the image as it is shown, turned as its EXIF data say',
    ),
    'mask size': ('masks of another size than their image', 'write it in the size of the image'),
    'mask channels': ('masks of several channels', 'write the number of the class into one channel'),
    'mask label': ('masks with labels beyond the classes', ''),
    'panoptic channels': (
        'panoptic masks that are not in colour',
        "write ids of segments as colours, red + 256 green + 65536 blue, as COCO's panopticapi does",
    ),
    'segment not in mask': (
        'panoptic masks without a segment of the annotation file',
        'write its pixels into the mask, or take it out of segments_info',
    ),
    'segment not in file': (
        'panoptic masks with a segment that the annotation file lacks',
        'add it to segments_info, or give its pixels the colour black, which is no label',
    ),
}


def image_size(path: str, decode: bool = False, turns: bool = True) -> tuple[int, int]:
    """Width and height of an image as OpenMMLab reads it.

    Args:
        path: The file.
        decode: Whether its pixels are read, too.
        turns: Whether it is turned as its EXIF data say.

    Raises:
        OSError: If it cannot be read.
    """
    try:
        with Image.open(path) as image:
            if decode:
                image.load()
            turned = turns and image.getexif().get(ExifTags.Base.Orientation, 1) >= 5
            return image.size[::-1] if turned else image.size
    except (UnidentifiedImageError, Image.DecompressionBombError) as error:  # others may read it
        size = _tiff_size(path)
        if size:
            return size
        import cv2

        pixels = cv2.imread(path, cv2.IMREAD_UNCHANGED)
        if pixels is None:
            raise OSError(f'neither Pillow nor OpenCV can read it: {error}') from error
        return pixels.shape[1], pixels.shape[0]
    except (SyntaxError, ValueError) as error:  # of Pillow's, for some formats that are damaged
        raise OSError(str(error)) from error


def _tiff_size(path: str) -> tuple[int, int] | None:
    """Width and height of a TIFF of any number of bands; None if it is none, or tifffile is missing."""
    try:
        import tifffile
    except ImportError:
        return None
    try:
        with tifffile.TiffFile(path) as file:
            return file.pages[0].imagewidth, file.pages[0].imagelength
    except (OSError, ValueError, tifffile.TiffFileError):  # the last was no ValueError before 2026
        return None


def _mask_labels(path: str) -> tuple[np.ndarray, tuple[int, int], int]:
    """Labels of a mask as they are in the file, its width and height, and its number of channels."""
    with Image.open(path) as mask:
        pixels = np.asarray(mask)
        labels = (
            np.flatnonzero(np.bincount(pixels.ravel())) if pixels.dtype == np.uint8 else np.unique(pixels)
        )
        return labels.astype(int), mask.size, len(mask.getbands())


def _segments(path: str) -> tuple[np.ndarray, tuple[int, int], int]:
    """Ids of a panoptic mask's segments, its width and height, and its number of channels."""
    with Image.open(path) as mask:
        ids = np.unique(rgb2id(np.asarray(mask.convert('RGB'))))
        return ids[ids != VOID], mask.size, 3 if mask.mode == 'P' else len(mask.getbands())


def _segment_problems(sample: Sample, ids: np.ndarray, num_channels: int) -> list[tuple[str, str]]:
    if num_channels < 3:
        return [('panoptic channels', f'{sample.mask} has no colours')]
    problems = []
    for kind, what, segments in (
        ('segment not in mask', 'lacks', sample.segments.difference(ids.tolist())),
        ('segment not in file', 'has, and its annotation lacks,', set(ids.tolist()) - sample.segments),
    ):
        if segments:
            example = min(segments)
            problems.append((kind, f'{sample.mask} {what} {len(segments)} segments, such as {example}'))
    return problems


def _trained_labels(labels: np.ndarray, reading: Reading) -> np.ndarray:
    """Labels of a mask as MMSegmentation makes them of those in the file."""
    if reading.reduce_zero_label:
        labels = np.where((labels == 0) | (labels == IGNORE_INDEX), IGNORE_INDEX, labels - 1)
    if reading.label_map is not None:
        labels = np.array([reading.label_map.get(label, label) for label in labels.tolist()], int)
    return np.unique(labels)


def look(sample: Sample, reading: Reading) -> Look:
    """Read a sample. A file that is not there is no problem: all are looked for elsewhere."""
    problems, size, labels, digest = [], None, None, None
    if sample.image is not None:
        try:
            size = image_size(sample.image, reading.decode, reading.turns)
            if reading.decode:
                with open(sample.image, 'rb') as file:
                    digest = hashlib.blake2b(file.read(), digest_size=16).digest()
        except OSError as error:
            if isinstance(error, FileNotFoundError) and not os.path.islink(sample.image):
                return Look([])
            problems.append(('broken image', f'{sample.image} is broken: {error}'))
    if size and sample.size and size != tuple(sample.size):
        clause = (
            f'{sample.image} has {size[0]} x {size[1]} pixels, by the annotation file '
            f'{sample.size[0]:g} x {sample.size[1]:g}'
        )
        problems.append(('image size', clause))
    if sample.mask is not None:
        try:
            read = _mask_labels if sample.segments is None else _segments
            labels, mask_size, num_channels = read(sample.mask)
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            if isinstance(error, FileNotFoundError) and not os.path.islink(sample.mask):
                return Look(problems, None, digest)
            return Look([*problems, ('broken mask', f'{sample.mask} is broken: {error}')], None, digest)
        if size and mask_size != size:
            clause = (
                f'{sample.mask} has {mask_size[0]} x {mask_size[1]} pixels, its image {size[0]} x {size[1]}'
            )
            problems.append(('mask size', clause))
        if sample.segments is not None:
            return Look(problems + _segment_problems(sample, labels, num_channels), None, digest)
        if num_channels > 1:
            problems.append(('mask channels', f'{sample.mask} has {num_channels} channels, a mask has one'))
            return Look(problems, None, digest)
        labels = _trained_labels(labels, reading)
        beyond = labels[((labels >= reading.num_classes) | (labels < 0)) & (labels != reading.ignore_index)]
        if len(beyond):
            after = ' (after reduce_zero_label)' if reading.reduce_zero_label else ''
            problems.append(('mask label', f'{sample.mask} has label {beyond.max()}{after}'))
    return Look(problems, None if labels is None else labels.tolist(), digest)
