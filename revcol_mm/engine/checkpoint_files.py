"""Checkpoint files that are whole, and finding those that are not."""

import os
import re
import tempfile
import zipfile
from pathlib import Path

from mmengine.fileio import LocalBackend, register_backend

from revcol_mm.models.checkpoint import check_size
from revcol_mm.models.sharded_checkpoint import REST, has_all_shards


class AtomicLocalBackend(LocalBackend):
    """Local files that are either whole or not there: written under another name, then renamed."""

    def put(self, obj: bytes, filepath: str | Path) -> None:
        filepath = Path(filepath)
        filepath.parent.mkdir(parents=True, exist_ok=True)
        file = tempfile.NamedTemporaryFile(dir=filepath.parent, prefix=f'.{filepath.name}.', delete=False)
        try:
            with file:  # closed then: Windows renames and removes no file that is open
                file.write(obj)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(file.name, 0o644)
            os.replace(file.name, filepath)
        except BaseException:
            os.unlink(file.name)
            raise


register_backend('atomic', AtomicLocalBackend)


def is_whole(checkpoint: Path) -> bool:
    """Whether all of a checkpoint's parts have the checksums that were written with them.

    Of a sharded checkpoint's tensors, which have none, whether all bytes are there.
    """
    if checkpoint.is_dir():
        return is_whole(checkpoint / REST) and has_all_shards(checkpoint)
    try:
        check_size(checkpoint)
        with zipfile.ZipFile(checkpoint) as file:
            return file.testzip() is None
    except (OSError, ValueError, zipfile.BadZipFile):
        return False


def newest_whole_checkpoint(work_dir: str | Path) -> tuple[Path | None, list[Path]]:
    """The checkpoint to resume from, None if there is none, and newer ones that are damaged."""
    saved = [p for p in Path(work_dir).glob('*.pth') if re.fullmatch(r'(iter|epoch)_\d+', p.stem)]
    saved.sort(key=lambda p: (p.stat().st_mtime_ns, int(p.stem.split('_')[1])), reverse=True)
    damaged = []
    for checkpoint in saved:
        if is_whole(checkpoint):
            return checkpoint, damaged
        damaged.append(checkpoint)
    return None, damaged
