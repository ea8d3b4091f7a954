"""Images and videos as a user names them: their files, the names of results, their pictures."""

import os
from glob import glob
from itertools import groupby, islice
from pathlib import Path
from typing import Callable, Iterable, Iterator, NamedTuple, Sequence

import mmcv
import numpy as np

from .image_header import ImageError

UNREADABLE = 65  # exit status of a program that could not read all images; EX_DATAERR, where os has it
IMAGE_SUFFIXES = {'.bmp', '.jpeg', '.jpg', '.pgm', '.png', '.ppm', '.tif', '.tiff', '.webp'}
VIDEO_SUFFIXES = {'.avi', '.m4v', '.mkv', '.mov', '.mp4', '.mpeg', '.mpg', '.webm', '.wmv'}


class Source(NamedTuple):
    """An image or a video.

    Args:
        path: Absolute.
        root: The folder that all sources of a run are in.
        name: For what is made of it, without a suffix: a path below any folder, that no other source has.
    """

    path: Path
    root: Path
    name: str

    @property
    def is_video(self) -> bool:
        return self.path.suffix.lower() in VIDEO_SUFFIXES

    @property
    def file_name(self) -> str:
        """Path below the root."""
        return self.path.relative_to(self.root).as_posix()


class Picture(NamedTuple):
    """An image, or a frame of a video.

    Args:
        source: Where it is from.
        image: (H, W, 3), BGR, or as the test pipeline reads it.
        frame: Number of the frame, from 0 on; None: it is an image.
        fps: Frames a second; 0: it is an image.
    """

    source: Source
    image: np.ndarray
    frame: int | None = None
    fps: float = 0.0


def find_sources(inputs: Sequence[str], leave_out: Path) -> list[Source]:
    """Files, those of folders and of the folders in them, and what matches patterns.

    Of a folder all with a known suffix are taken, by name. A file that is named or matches is taken whatever
    it is called, and one that is named twice is taken once.

    Args:
        inputs: Paths and patterns of :mod:`glob`, '**' included.
        leave_out: The folder for results. Of folders, files in it are not taken.

    Raises:
        FileNotFoundError: If an input is nothing, or a folder without images and videos.
    """
    files = {}
    for name in inputs:
        paths = [name] if os.path.exists(name) else sorted(glob(name, recursive=True))
        found = [file for path in paths for file in _files(Path(path), leave_out.absolute())]
        if not found:
            kind = 'image or video in' if os.path.isdir(name) else 'file, folder or match of'
            raise FileNotFoundError(f'no {kind} {name}')
        files.update(dict.fromkeys(Path(os.path.abspath(file)) for file in found))
    root = Path(os.path.commonpath([file.parent for file in files]))
    names = [file.relative_to(root).with_suffix('').as_posix() for file in files]
    folders = {parent.as_posix() for name in names for parent in Path(name).parents}
    outputs = {name + suffix for name in names for suffix in ('', '.png', '.mp4')}
    if len(set(names)) < len(names) or outputs & folders:
        # two differ in their suffix alone, or one is called as a folder in which others' results go
        names = [file.relative_to(root).as_posix() for file in files]
    return [Source(file, root, name) for file, name in zip(files, names)]


def _files(path: Path, leave_out: Path) -> list[Path]:
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
    """How many pictures there are, as far as videos tell."""
    return sum(max(_open(source).frame_cnt, 0) if source.is_video else 1 for source in sources)


def read_pictures(
    sources: Iterable[Source],
    read: Callable[[Path], np.ndarray],
    report: Callable[[Source, str], None],
) -> Iterator[Picture]:
    """Yield every picture; one by one, so that memory does not grow with their number.

    Args:
        sources: Images and videos.
        read: Reads an image, or raises ImageError.
        report: Called with what cannot be read, or not to its end, and why.
    """
    for source in sources:
        if source.is_video:
            video, number = _open(source), 0
            for number, image in enumerate(video, start=1):
                yield Picture(source, image, number - 1, video.fps)
            if number < video.frame_cnt or number == 0:
                report(source, f'ends after {number} of {max(video.frame_cnt, 0)} frames')
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
    """Put pictures that follow each other into batches.

    Args:
        pictures: The pictures.
        batch_size: How many a batch has at most.
        one_size: Only of the same height and width, so that no prediction depends on what else is in a batch.
    """
    for _, group in groupby(pictures, key=lambda picture: picture.image.shape if one_size else None):
        while batch := list(islice(group, batch_size)):
            yield batch
