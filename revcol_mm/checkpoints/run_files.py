"""Checkpoint files of a run: write them atomically, and find the one to resume from."""

import os
import re
import shutil
import zipfile
from pathlib import Path
from typing import Any

import torch
from mmengine.fileio import LocalBackend, register_backend

from revcol_mm.errors import CheckpointError

from .atomic_files import replacing
from .reading import check_size, reason_in_one_line
from .safe_globals import allow_mmengine_globals
from .shards import REST, has_all_shards
from .sources import is_remote

LAST = 'last_checkpoint'  # the file in which MMEngine records the path of the newest checkpoint


class AtomicLocalBackend(LocalBackend):
    """MMEngine's backend for local files, but with atomic writes, see :func:`replacing`."""

    def put(self, obj: bytes, filepath: str | Path) -> None:
        """Write a file, and create its folder if it is missing."""
        with replacing(filepath) as file:
            file.unfinished.write_bytes(obj)


register_backend('atomic', AtomicLocalBackend)


def is_complete(checkpoint: Path) -> bool:
    """Return whether a checkpoint is complete and undamaged.

    All parts of a file are compared with the checksums in its archive. The tensors of a sharded checkpoint
    have no checksums: only their sizes are compared.

    Raises:
        OSError: If the file exists but cannot be read, so that it is unknown whether it is damaged.
    """
    try:
        if checkpoint.is_dir():
            return is_complete(checkpoint / REST) and has_all_shards(checkpoint)
        check_size(checkpoint)
        with zipfile.ZipFile(checkpoint) as file:
            return file.testzip() is None
    except FileNotFoundError:
        return False
    except OSError:
        raise
    except Exception:  # zipfile and pickle raise errors of many classes for damaged files
        return False


def read_meta(checkpoint: Path) -> dict[str, Any]:
    """Read the ``meta`` of a checkpoint that a training run wrote, with ``weights_only=True``.

    Raises:
        CheckpointError: If it cannot be read, or lacks the iteration, the epoch, the seed or the optimizer.
    """
    file = checkpoint / REST if checkpoint.is_dir() else checkpoint
    allow_mmengine_globals()
    try:
        content = torch.load(file, 'cpu', mmap=True, weights_only=True)
        meta = content['meta']
        if not all(isinstance(meta[key], int) for key in ('iter', 'epoch', 'seed')):
            raise KeyError('meta')
    except (KeyError, TypeError, IndexError) as error:
        raise CheckpointError(
            f'cannot resume: {file} has no metadata of a run ({error}); use load_from for weights alone'
        ) from error
    except Exception as error:  # torch raises errors of many classes for damaged files
        raise CheckpointError(f'cannot resume: {file}: {reason_in_one_line(error)}') from error
    if 'optimizer' not in content:
        raise CheckpointError(
            f'cannot resume: {checkpoint} has no state of the optimizer, like every best checkpoint; use '
            'load_from for weights alone'
        )
    return meta


def checkpoint_folder(work_dir: str | Path, out_dir: str | None) -> str:
    """Return where MMEngine's CheckpointHook writes: ``out_dir`` plus the work dir's name, or work dir."""
    return os.path.join(out_dir, Path(work_dir).name) if out_dir else str(work_dir)


def saved_checkpoints(
    work_dir: str | Path, out_dir: str | None = None, filename_tmpl: str | None = None
) -> list[Path]:
    """Return a run's checkpoints, in the order in which to try to resume from them.

    First those that cannot be read, so that they are reported as damaged; then the one that MMEngine recorded
    as the last; then by iteration, newest first. File dates are not used, because copying changes them.
    Sharded checkpoints may be complete but not yet renamed: their names start with a dot.

    Args:
        work_dir: Folder of the run.
        out_dir: The CheckpointHook's, if set.
        filename_tmpl: The CheckpointHook's, if set, such as 'step_{:06d}.pth'.
    """
    templates = filter(None, ('iter_{}.pth', 'epoch_{}.pth', filename_tmpl))
    names = [re.sub(r'\\\{[^}]*\}', r'(\\d+)', re.escape(template)) for template in templates]
    pattern = re.compile(rf'\.?(?:{"|".join(names)})')
    folders = dict.fromkeys([Path(work_dir), Path(checkpoint_folder(work_dir, out_dir))])
    numbers: dict[Path, int] = {}
    for path in (path for folder in folders if folder.is_dir() for path in folder.iterdir()):
        match = pattern.fullmatch(path.name)
        if match and (path.is_dir() or not path.name.startswith('.')):
            numbers[path] = int(next(filter(None, match.groups()), 0))
    last = Path(_recorded(work_dir)).name

    def order(path: Path) -> tuple:
        try:
            iteration = read_meta(path)['iter']
        except CheckpointError:
            iteration = float('inf')
        return iteration == float('inf'), path.name.removeprefix('.') == last, iteration, numbers[path]

    return sorted(numbers, key=order, reverse=True)


def newest_complete_checkpoint(
    work_dir: str | Path, out_dir: str | None = None, filename_tmpl: str | None = None
) -> tuple[Path | None, list[Path]]:
    """Find the checkpoint to resume from; see :func:`saved_checkpoints` for the order and the arguments.

    Returns:
        The first undamaged checkpoint, or None if the run has none at all; and the damaged ones before it.

    Raises:
        CheckpointError: If all are damaged, one cannot be read, or they are in a remote store.
    """
    if out_dir and is_remote(out_dir):
        last = _recorded(work_dir)
        # A run that a signal interrupted saves its last checkpoint in the work dir.
        if is_remote(last) or not is_complete(Path(last)):
            raise CheckpointError(
                f'cannot resume from {out_dir}: copy a checkpoint from there, and name it with --resume'
            )
        return Path(last), []
    damaged: list[Path] = []
    try:
        for checkpoint in saved_checkpoints(work_dir, out_dir, filename_tmpl):
            if is_complete(checkpoint):
                return _renamed(checkpoint), damaged
            damaged.append(checkpoint)
    except OSError as error:
        raise CheckpointError(f'cannot resume: {error.filename}: {error.strerror}') from error
    if damaged:
        raise CheckpointError(
            f'cannot resume: all checkpoints in {work_dir} are damaged: '
            f'{", ".join(path.name for path in damaged)}; remove them to start from the beginning'
        )
    return None, damaged


def _recorded(work_dir: str | Path) -> str:
    """Return the path of the checkpoint that a run wrote last; '' if none is recorded."""
    record = Path(work_dir, LAST)
    return record.read_text().strip() if record.is_file() else ''


def _renamed(checkpoint: Path) -> Path:
    """Rename a complete sharded checkpoint whose writer was killed before it could do so."""
    final = checkpoint.with_name(checkpoint.name.removeprefix('.'))
    if final != checkpoint:
        replace_folder(checkpoint, final)
    return final


def replace_folder(new: Path, final: Path) -> None:
    """Move a complete folder to ``final``, and remove the one that was there.

    If the process is killed in between, the complete folder is still there under its old name.
    """
    shutil.rmtree(final, ignore_errors=True)
    os.replace(new, final)


def record_last(work_dir: str | Path, checkpoint: str | Path) -> None:
    """Record the newest checkpoint of a run, as MMEngine's CheckpointHook does."""
    with replacing(Path(work_dir, LAST)) as file:
        file.unfinished.write_text(str(checkpoint))


def remove_unfinished(folder: str | Path) -> None:
    """Remove unfinished checkpoints of a killed process; no other process may be writing to the folder."""
    for path in Path(folder).glob('.*.pth.part'):
        path.unlink(missing_ok=True)
    for path in Path(folder).glob('.*.pth'):
        if path.is_dir():  # sharded; macOS adds files such as ._iter_4000.pth
            shutil.rmtree(path)
