"""Files that are either whole or not there, whatever happens while they are written."""

import os
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Iterator


@dataclass
class Replacement:
    """A file that is being written.

    Args:
        path: What it will be called; may be changed until it is done.
        unfinished: Where to write it, in the same folder.
    """

    path: Path
    unfinished: Path


@contextmanager
def replacing(path: str | Path) -> Iterator[Replacement]:
    """Write a file that takes the place of ``path`` at the end of the block, when it is on the disk.

    After an error nothing has changed. What a killed process leaves behind is overwritten by the next one
    that writes the same file. Folders are made where they are missing.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    file = Replacement(path, path.with_name(f'.{path.name}.part'))
    try:
        file.unfinished.unlink(missing_ok=True)
        file.unfinished.touch(exist_ok=False)  # with the mode of any new file, which some writers change
        mode = file.unfinished.stat().st_mode
        yield file
        file.unfinished.chmod(mode)
        with file.unfinished.open('rb+') as content:
            os.fsync(content.fileno())
        file.unfinished.replace(file.path)
    except BaseException:
        file.unfinished.unlink(missing_ok=True)
        raise
    sync_folder(file.path.parent)


def sync_folder(folder: Path) -> None:
    """Write a folder's list of names to the disk; Windows, which has no such call, does so by itself."""
    if os.name == 'nt':
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
