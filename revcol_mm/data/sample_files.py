"""Find files of samples that are missing, that are listed twice or that no sample uses."""

import os
from collections import Counter, defaultdict
from typing import Iterable, Iterator

from .findings import ERROR, WARNING, Finding
from .samples import Sample
from .splits import Split

IMAGE_SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.tif', '.tiff', '.webp')


class Folders:
    """Existing files. Each folder is listed once, because one request per file is slow on a network disk."""

    def __init__(self) -> None:
        self._names = {}

    def names(self, folder: str) -> set[str]:
        """Return the names of the files in a folder."""
        if folder not in self._names:
            try:
                with os.scandir(folder or '.') as entries:
                    self._names[folder] = {entry.name for entry in entries}
            except OSError:
                self._names[folder] = set()
        return self._names[folder]

    def missing(self, paths: Iterable[str]) -> list[str]:
        """Return the paths that do not exist."""
        missing = []
        for path in paths:
            folder, name = os.path.split(path)
            # The name may be there in another case, which some file systems accept.
            if name not in self.names(folder) and not os.path.exists(path):
                missing.append(path)
        return missing

    def remedy(self, path: str) -> str:
        """Return how to correct the path of a missing file, guessed from the files that exist."""
        folder, name = os.path.split(path)
        names = self.names(folder)
        if '\\' in name:
            return r"file names contain Windows' path separators: replace '\' by /"
        lower = {each.lower(): each for each in names}
        if name.lower() in lower:
            return f'there is {lower[name.lower()]}: upper and lower case differ'
        stems = {os.path.splitext(each)[0]: each for each in names}
        stem = os.path.splitext(name)[0]
        for candidate in (stem, os.path.splitext(stem)[0]):
            if candidate in stems:
                return f'there is {stems[candidate]}: suffixes differ'
        parent, inner = os.path.split(folder)
        if not names and name in self.names(parent):
            return f'there is {os.path.join(parent, name)}: file names must not contain the folder {inner}'
        if not names:
            return f'there is no folder {folder}, or it is empty'
        return 'add the files, or remove their entries'


def check_files(split: Split, found: list[Sample]) -> Iterator[Finding]:
    """Check that the files of samples exist and are listed once, and that no other files are in the folders.

    ``found`` may have more samples than the data set: all images of its annotation file.
    """
    folders = Folders()
    dataset, where = split.dataset, split.where
    for kind in ('image', 'mask'):
        paths = _paths(found, kind)
        missing = folders.missing(paths)
        if missing and split.file and len(found) > len(dataset):  # the data set may have left these out
            paths = _paths(split.samples(), kind)
            missing = folders.missing(paths)
        if missing:
            message = f'of {len(paths)} {kind}s are missing'
            yield Finding.counted(f'missing {kind}', where, message, folders.remedy(missing[0]), missing)
    counts = Counter(_paths(found, 'image'))
    repeated = [path for path, count in counts.items() if count > 1]
    if repeated and not split.file:  # the check of an annotation file reports them, too
        message = 'images that are listed more than once'
        remedy = 'list each once'
        yield Finding.counted('duplicate image', where, message, remedy, repeated, severity=WARNING)
    if not split.trains:
        yield from _check_outputs(split, counts)
    if not getattr(dataset, 'ann_file', '') and getattr(dataset, 'img_suffix', None):
        yield from _check_unused(split, found, folders)


def _paths(found: list[Sample], kind: str) -> list[str]:
    return [path for sample in found if (path := getattr(sample, kind)) is not None]


def _check_outputs(split: Split, paths: Iterable[str]) -> Iterator[Finding]:
    """Find images with the same name in different folders, after which predictions are named."""
    by_name = defaultdict(list)
    for path in paths:
        by_name[os.path.splitext(os.path.basename(path))[0]].append(path)
    shared = [' and '.join(each[:2]) for each in by_name.values() if len(each) > 1]
    if shared:
        writes = any(getattr(metric, 'output_dir', None) for _, metric, _ in split.metrics)
        message = 'names that several images have, so that files of predictions would overwrite each other'
        remedy = 'rename images' if writes else 'rename images before you write predictions or pictures'
        severity = ERROR if writes else WARNING
        yield Finding.counted('duplicate image name', split.where, message, remedy, shared, severity=severity)


def _check_unused(split: Split, found: list[Sample], folders: Folders) -> Iterator[Finding]:
    """Find images and masks that MMSegmentation does not take, because of its suffixes."""
    used = {*_paths(found, 'image'), *_paths(found, 'mask')}

    def unused(kind: str, suffixes: tuple[str, ...]) -> list[str]:
        return [
            path
            for folder in sorted({os.path.dirname(path) for path in _paths(found, kind)})
            for name in sorted(folders.names(folder))
            if name.lower().endswith(suffixes) and (path := os.path.join(folder, name)) not in used
        ]

    if images := unused('image', IMAGE_SUFFIXES):
        message = 'images in its folders that are not used'
        remedy = f'img_suffix is {split.dataset.img_suffix!r}'
        yield Finding.counted('unused image', split.where, message, remedy, images, severity=WARNING)
    if masks := unused('mask', (split.dataset.seg_map_suffix.lower(),)):
        message, remedy = 'masks without an image', 'their names differ, or images are missing'
        yield Finding.counted('unused mask', split.where, message, remedy, masks, severity=WARNING)
