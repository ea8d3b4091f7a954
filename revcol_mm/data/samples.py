"""Read the image and mask of a sample, and find what is wrong with them."""

import hashlib
import os
from typing import NamedTuple

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from revcol_mm.panopticapi.evaluation import VOID
from revcol_mm.panopticapi.utils import rgb2id

from .pipelines import DEFAULT_IGNORE_INDEX


class Sample(NamedTuple):
    """Files and annotations of a sample.

    Args:
        image: Path of the image.
        mask: Path of the segmentation mask.
        size: Width and height of the image according to the annotation file.
        label: Class of the image, for classification.
        segments: Ids of the segments of a panoptic mask according to the annotation file.
    """

    image: str | None
    mask: str | None = None
    size: tuple[int, int] | None = None
    label: int | None = None
    segments: frozenset[int] | None = None


class ReadOptions(NamedTuple):
    """How samples are read.

    Args:
        decode: Whether to decode and hash images, instead of reading only their headers.
        apply_exif: Whether images are rotated by their EXIF orientation, as OpenMMLab does by default.
        num_classes: Number of classes of masks.
        ignore_index: Ignored label of masks.
        reduce_zero_label: As in MMSegmentation.
        label_map: New labels by old ones, as in MMSegmentation.
    """

    decode: bool = False
    apply_exif: bool = True
    num_classes: int = 0
    ignore_index: int = DEFAULT_IGNORE_INDEX
    reduce_zero_label: bool = False
    label_map: dict[int, int] | None = None


class SampleReport(NamedTuple):
    """What was found in a sample.

    Args:
        problems: A kind, of :data:`KINDS`, and a statement that names the file, for each problem.
        labels: Labels of the semantic mask, as used in training, in ascending order.
        digest: Hash of the image file, if the image was decoded.
    """

    problems: list[tuple[str, str]]
    labels: list[int] | None = None
    digest: bytes | None = None


# Message and remedy of each kind of problem
KINDS = {
    'broken image': ('images that cannot be read', 'replace or remove it'),
    'broken mask': ('masks that cannot be read', 'replace or remove it'),
    'image size': (
        'images whose size differs from the annotation file',
        'annotate the image as it is displayed, with its EXIF orientation applied',
    ),
    'mask size': ('masks whose size differs from their image', 'save the mask in the size of the image'),
    'mask channels': ('masks of several channels', 'save the class numbers in a single channel'),
    'mask label': (
        'masks with labels beyond the classes',
        'there are {num_classes} classes, 0 to {last_class}, and {ignore_index} is ignored (ignore_index)',
    ),
    'panoptic channels': (
        'panoptic masks without colour channels',
        "save segment ids as colours, red + 256 green + 65536 blue, as COCO's panopticapi does",
    ),
    'segment not in mask': (
        'panoptic masks without a segment of the annotation file',
        'add its pixels to the mask, or remove it from segments_info',
    ),
    'segment not in file': (
        'panoptic masks with a segment that is not in the annotation file',
        'add it to segments_info, or make its pixels black, which means unlabelled',
    ),
}
# Pillow's, depending on the format
READ_ERRORS = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)


def image_size(path: str, decode: bool = False, apply_exif: bool = True) -> tuple[int, int]:
    """Return width and height of an image as OpenMMLab reads it.

    Args:
        path: Path of the image.
        decode, apply_exif: See :class:`ReadOptions`.

    Raises:
        OSError: If the image cannot be read.
    """
    try:
        with Image.open(path) as image:
            if decode:
                image.load()
            swapped = apply_exif and image.getexif().get(ExifTags.Base.Orientation, 1) >= 5
            return image.size[::-1] if swapped else image.size
    except (UnidentifiedImageError, Image.DecompressionBombError) as error:  # other readers may succeed
        size = _tiff_size(path)
        if size:
            return size
        import cv2

        pixels = cv2.imread(path, cv2.IMREAD_UNCHANGED)
        if pixels is None:
            raise OSError(f'neither Pillow nor OpenCV can read it: {error}') from error
        return pixels.shape[1], pixels.shape[0]
    except (SyntaxError, ValueError) as error:  # raised by Pillow for some damaged files
        raise OSError(str(error)) from error


def _tiff_size(path: str) -> tuple[int, int] | None:
    """Return the size of a TIFF of any number of bands, or None if it is not one or tifffile is missing."""
    try:
        import tifffile
    except ImportError:
        return None
    try:
        with tifffile.TiffFile(path) as file:
            return file.pages[0].imagewidth, file.pages[0].imagelength
    except (OSError, ValueError, tifffile.TiffFileError):  # TiffFileError is a ValueError only since 2026
        return None


def inspect_sample(sample: Sample, options: ReadOptions) -> SampleReport:
    """Read a sample and return what was found. Missing files are ignored: `sample_files` reports them."""
    problems, size, digest = [], None, None
    if sample.image is not None:
        try:
            size = image_size(sample.image, options.decode, options.apply_exif)
            if options.decode:
                with open(sample.image, 'rb') as file:
                    digest = hashlib.blake2b(file.read(), digest_size=16).digest()
        except OSError as error:
            if _is_missing(sample.image, error):
                return SampleReport([])
            problems.append(('broken image', f'{sample.image} is broken: {error}'))
    if size and sample.size and size != tuple(sample.size):
        statement = (
            f'{sample.image} has {size[0]} x {size[1]} pixels, but '
            f'{sample.size[0]} x {sample.size[1]} in the annotation file'
        )
        problems.append(('image size', statement))
    labels = None
    if sample.mask is not None:
        found, labels = _inspect_mask(sample, size, options)
        problems += found
    return SampleReport(problems, labels, digest)


def _is_missing(path: str, error: Exception) -> bool:
    """Whether a file does not exist. A dangling link is found when files are listed, so it is not missing."""
    return isinstance(error, FileNotFoundError) and not os.path.islink(path)


def _inspect_mask(
    sample: Sample, image_size: tuple[int, int] | None, options: ReadOptions
) -> tuple[list[tuple[str, str]], list[int] | None]:
    """Return the problems of a mask and, for semantic segmentation, its labels as used in training."""
    path, problems = sample.mask, []
    try:
        with Image.open(path) as mask:
            size, bands = mask.size, len(mask.getbands())
            values = _labels(mask) if sample.segments is None else _segment_ids(mask)
            is_coloured = mask.mode == 'P' or bands >= 3
    except READ_ERRORS as error:
        broken = [] if _is_missing(path, error) else [('broken mask', f'{path} is broken: {error}')]
        return broken, None
    if image_size and size != image_size:
        statement = f'{path} has {size[0]} x {size[1]} pixels, its image {image_size[0]} x {image_size[1]}'
        problems.append(('mask size', statement))
    if sample.segments is not None:
        if not is_coloured:
            return [*problems, ('panoptic channels', f'{path} has no colour channels')], None
        return problems + _compare_segments(path, set(values.tolist()), sample.segments), None
    if bands > 1:
        return [*problems, ('mask channels', f'{path} has {bands} channels, but a mask has one')], None
    labels = _trained_labels(values, options)
    beyond = labels[((labels >= options.num_classes) | (labels < 0)) & (labels != options.ignore_index)]
    if len(beyond):
        after = ' (after reduce_zero_label)' if options.reduce_zero_label else ''
        problems.append(('mask label', f'{path} has label {beyond.max()}{after}'))
    return problems, labels.tolist()


def _labels(mask: Image.Image) -> np.ndarray:
    """Return the labels of a semantic mask as saved."""
    pixels = np.asarray(mask)
    if pixels.dtype == np.uint8:  # counting is faster than sorting
        return np.flatnonzero(np.bincount(pixels.ravel()))
    return np.unique(pixels).astype(int)


def _segment_ids(mask: Image.Image) -> np.ndarray:
    ids = np.unique(rgb2id(np.asarray(mask.convert('RGB'))))
    return ids[ids != VOID]


def _compare_segments(path: str, in_mask: set[int], in_file: frozenset[int]) -> list[tuple[str, str]]:
    problems = []
    if missing := in_file - in_mask:
        statement = f'{path} lacks {len(missing)} segments of its annotation, such as {min(missing)}'
        problems.append(('segment not in mask', statement))
    if unknown := in_mask - in_file:
        statement = f'{path} has {len(unknown)} segments that its annotation lacks, such as {min(unknown)}'
        problems.append(('segment not in file', statement))
    return problems


def _trained_labels(labels: np.ndarray, options: ReadOptions) -> np.ndarray:
    """Return the labels that MMSegmentation trains on, given those of the file."""
    if options.reduce_zero_label:
        is_ignored = (labels == 0) | (labels == DEFAULT_IGNORE_INDEX)
        labels = np.where(is_ignored, DEFAULT_IGNORE_INDEX, labels - 1)
    if options.label_map is not None:
        labels = np.array([options.label_map.get(label, label) for label in labels.tolist()], int)
    return np.unique(labels)
