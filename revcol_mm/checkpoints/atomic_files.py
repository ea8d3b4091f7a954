"""Write files atomically: a crash leaves either the previous file or the complete new one."""

import os
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Iterator


@dataclass
class Replacement:
    """A file that is being written.

    Args:
        path: Its final path; may be changed until the ``with`` block ends.
        unfinished: Where to write it, in the same folder.
    """

    path: Path
    unfinished: Path


@contextmanager
def replacing(path: str | Path) -> Iterator[Replacement]:
    """Write a temporary file that replaces ``path`` when the block ends, after it was synced to the disk.

    After an error the previous file is unchanged. The temporary file of a process that was killed is
    overwritten the next time that the same path is written. Missing folders are created.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    file = Replacement(path, path.with_name(f'.{path.name}.part'))
    try:
        file.unfinished.unlink(missing_ok=True)
        # Some writers, such as safetensors, set another mode than new files have: restored below.
        file.unfinished.touch(exist_ok=False)
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
    """Sync a folder's entries to the disk; a no-op on Windows, which does not need it."""
    if os.name == 'nt':
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
