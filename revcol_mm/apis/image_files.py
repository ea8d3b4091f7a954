"""Images and videos on a command line: finding, reading and batching them."""

import os
from glob import glob
from itertools import groupby, islice
from pathlib import Path
from typing import Callable, Iterable, Iterator, NamedTuple, Sequence

import mmcv
import numpy as np

from .image_header import ImageError

UNREADABLE = 65  # exit status of a program that could not read all images: EX_DATAERR of sysexits.h
IMAGE_SUFFIXES = {'.bmp', '.jpeg', '.jpg', '.pgm', '.png', '.ppm', '.tif', '.tiff', '.webp'}
VIDEO_SUFFIXES = {'.avi', '.m4v', '.mkv', '.mov', '.mp4', '.mpeg', '.mpg', '.webm', '.wmv'}


class Source(NamedTuple):
    """An image or video file.

    Args:
        path: Absolute path.
        root: Common folder of all sources of a run.
        name: Name for output files, without suffix: a relative path, unique among the sources.
    """

    path: Path
    root: Path
    name: str

    @property
    def is_video(self) -> bool:
        return self.path.suffix.lower() in VIDEO_SUFFIXES

    @property
    def file_name(self) -> str:
        """Path relative to the root."""
        return self.path.relative_to(self.root).as_posix()


class Picture(NamedTuple):
    """An image, or a frame of a video.

    Args:
        source: The file it is from.
        image: (H, W, 3), BGR, or whatever the test pipeline reads.
        frame: Number of the frame, from 0 on. None for an image.
        fps: Frames per second. 0 for an image.
    """

    source: Source
    image: np.ndarray
    frame: int | None = None
    fps: float = 0.0


def find_sources(inputs: Sequence[str], leave_out: Path | None = None) -> list[Source]:
    """Find the images and videos that files, folders and patterns stand for.

    In folders and their subfolders, files with a known suffix are found, sorted by name. A file that is named
    or matches a pattern is taken whatever its suffix. Each file is taken once.

    Args:
        inputs: Paths, and patterns of :mod:`glob`, which may contain '**'.
        leave_out: Folder for the results, if any. Files in it are not found as part of another folder.

    Raises:
        FileNotFoundError: If an input does not exist, or is a folder without images and videos.
    """
    files = {}
    for name in inputs:
        paths = [name] if os.path.exists(name) else sorted(glob(name, recursive=True))
        found = [file for path in paths for file in _files(Path(path), leave_out and leave_out.absolute())]
        if not found:
            kind = 'image or video in' if os.path.isdir(name) else 'file, folder or match of'
            raise FileNotFoundError(f'no {kind} {name}')
        files.update(dict.fromkeys(Path(os.path.abspath(file)) for file in found))
    root = Path(os.path.commonpath([file.parent for file in files]))
    names = [file.relative_to(root).with_suffix('').as_posix() for file in files]
    folders = {parent.as_posix() for name in names for parent in Path(name).parents}
    outputs = {name + suffix for name in names for suffix in ('', '.png', '.mp4')}
    if len(set(names)) < len(names) or outputs & folders:
        # Two files differ only in their suffix, or an output would be named like a folder for other outputs.
        names = [file.relative_to(root).as_posix() for file in files]
    return [Source(file, root, name) for file, name in zip(files, names)]


def _files(path: Path, leave_out: Path | None) -> list[Path]:
    if not path.is_dir():
        return [path]
    return [
        file
        for file in sorted(path.rglob('*'))
        if file.suffix.lower() in IMAGE_SUFFIXES | VIDEO_SUFFIXES
        and file.is_file()
        and leave_out not in Path(os.path.abspath(file)).parents
    ]


def num_pictures(sources: Iterable[Source]) -> int:
    """Return the number of images and, as their headers say, of frames of videos."""
    return sum(max(_open(source).frame_cnt, 0) if source.is_video else 1 for source in sources)


def read_pictures(
    sources: Iterable[Source],
    read: Callable[[Path], np.ndarray],
    report: Callable[[Source, str], None],
) -> Iterator[Picture]:
    """Read images and frames one at a time, so that memory does not grow with their number.

    Args:
        sources: Images and videos.
        read: Reads an image, or raises an ImageError.
        report: Called with a source that cannot be read completely, and the reason.
    """
    for source in sources:
        if source.is_video:
            video, number = _open(source), 0
            for number, image in enumerate(video, start=1):
                yield Picture(source, image, number - 1, video.fps)
            if number == 0:
                report(source, 'not a video, or a broken one')
            elif number < video.frame_cnt:
                report(source, f'ends after {number} of {video.frame_cnt} frames')
            continue
        try:
            image = read(source.path)
        except ImageError as error:
            report(source, str(error))
        else:
            yield Picture(source, image)


def _open(source: Source) -> mmcv.VideoReader:
    return mmcv.VideoReader(str(source.path))


def batches(pictures: Iterable[Picture], batch_size: int, one_size: bool) -> Iterator[list[Picture]]:
    """Group consecutive pictures into batches of at most ``batch_size``.

    Args:
        pictures: The pictures.
        batch_size: Largest number of pictures in a batch.
        one_size: Whether a batch has only images of one size. Otherwise they would be padded, and a
            prediction would depend on the other images of its batch.
    """
    for _, group in groupby(pictures, key=lambda picture: picture.image.shape if one_size else None):
        while batch := list(islice(group, batch_size)):
            yield batch
