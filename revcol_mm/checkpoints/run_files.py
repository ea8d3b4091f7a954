"""Checkpoint files of a run: writing them whole, and finding the one to go on from."""

import os
import re
import shutil
import zipfile
from pathlib import Path
from typing import Any

import torch
from mmengine.fileio import LocalBackend, register_backend

from revcol_mm.errors import CheckpointError

from .reading import check_size, unreadable_because
from .shards import REST, has_all_shards
from .sources import is_remote
from .whole_files import replacing

LAST = 'last_checkpoint'  # MMEngine's record of which a run wrote last


class AtomicLocalBackend(LocalBackend):
    """Local files that are either whole or not there: written under another name, then renamed."""

    def put(self, obj: bytes, filepath: str | Path) -> None:
        """Write a file, and make its folder where there is none."""
        with replacing(filepath) as file:
            file.unfinished.write_bytes(obj)


register_backend('atomic', AtomicLocalBackend)


def is_whole(checkpoint: Path) -> bool:
    """Whether all of a checkpoint's parts have the checksums that were written with them.

    Of a sharded checkpoint's tensors, which have none, whether all bytes are there.

    Raises:
        OSError: If the file is there and cannot be read, which does not mean that it is damaged.
    """
    if checkpoint.is_dir():
        return is_whole(checkpoint / REST) and has_all_shards(checkpoint)
    try:
        check_size(checkpoint)
        with zipfile.ZipFile(checkpoint) as file:
            return file.testzip() is None
    except FileNotFoundError:
        return False
    except OSError:
        raise
    except Exception:  # zipfile raises all sorts
        return False


def read_meta(checkpoint: Path) -> dict[str, Any]:
    """Read what a checkpoint tells of its run, and nothing that is not data.

    Raises:
        CheckpointError: If it tells nothing, or cannot be read.
    """
    file = checkpoint / REST if checkpoint.is_dir() else checkpoint
    try:
        content = torch.load(file, 'cpu', mmap=True, weights_only=True)
        meta = content['meta']
        if not all(isinstance(meta[key], int) for key in ('iter', 'epoch', 'seed')):
            raise KeyError('meta')
        return meta
    except (KeyError, TypeError, IndexError) as error:
        raise CheckpointError(
            f'cannot resume: {file} does not tell of its run ({error}); load_from takes weights alone'
        ) from error
    except Exception as error:  # of files of others torch raises all sorts
        raise CheckpointError(f'cannot resume: {file}: {unreadable_because(error)}') from error


def checkpoint_folder(work_dir: str | Path, out_dir: str | None) -> str:
    """Where MMEngine's CheckpointHook writes: ``out_dir``, if given, with the work dir's name below it."""
    return os.path.join(out_dir, Path(work_dir).name) if out_dir else str(work_dir)


def saved_checkpoints(
    work_dir: str | Path, out_dir: str | None = None, filename_tmpl: str | None = None
) -> list[Path]:
    """Find a run's checkpoints, the one to go on from first; see :func:`newest_whole_checkpoint`.

    Folders of sharded checkpoints that were written to their end, but not yet renamed, are among them.
    """
    templates = filter(None, ('iter_{}.pth', 'epoch_{}.pth', filename_tmpl))
    names = [re.escape(template).replace(r'\{\}', r'\d+') for template in templates]
    pattern = re.compile(rf'\.?(?:{"|".join(names)})')
    folders = dict.fromkeys([Path(work_dir), Path(checkpoint_folder(work_dir, out_dir))])
    found = [
        path
        for folder in folders
        if folder.is_dir()
        for path in folder.iterdir()
        if pattern.fullmatch(path.name) and (path.is_dir() or not path.name.startswith('.'))
    ]
    last = Path(_recorded(work_dir)).name

    def order(path: Path) -> tuple:
        try:
            iteration = read_meta(path)['iter']
        except CheckpointError:
            iteration = float('inf')  # first, to be named as damaged
        number = int(re.findall(r'\d+', path.name)[-1])
        return iteration == float('inf'), path.name.removeprefix('.') == last, iteration, number

    return sorted(found, key=order, reverse=True)


def newest_whole_checkpoint(
    work_dir: str | Path, out_dir: str | None = None, filename_tmpl: str | None = None
) -> tuple[Path | None, list[Path]]:
    """Find the checkpoint to go on from: the one that the run wrote last, else that of most iterations.

    Dates of files are not looked at: copying changes them.

    Args:
        work_dir: Folder of the run.
        out_dir: The CheckpointHook's, if it has one.
        filename_tmpl: The CheckpointHook's, if it has one, such as 'step_{}.pth'.

    Returns:
        The checkpoint, None if there is none at all, and those before it that are damaged.

    Raises:
        CheckpointError: If there are only damaged ones, one cannot be read, or they are in a remote store.
    """
    if out_dir and is_remote(out_dir):
        last = _recorded(work_dir)
        if is_remote(last) or not is_whole(Path(last)):  # else a run that a signal ended has saved it here
            raise CheckpointError(
                f'cannot resume from {out_dir}: copy a checkpoint from there, and name it with --resume'
            )
        return Path(last), []
    damaged = []
    try:
        for checkpoint in saved_checkpoints(work_dir, out_dir, filename_tmpl):
            if is_whole(checkpoint):
                return _renamed(checkpoint), damaged
            damaged.append(checkpoint)
    except OSError as error:
        raise CheckpointError(f'cannot resume: {error.filename}: {error.strerror}') from error
    if damaged:
        raise CheckpointError(
            f'cannot resume: all checkpoints in {work_dir} are damaged: '
            f'{", ".join(path.name for path in damaged)}; remove them to begin anew'
        )
    return None, damaged


def _recorded(work_dir: str | Path) -> str:
    """Which checkpoint a run wrote last; '' if it does not say."""
    record = Path(work_dir, LAST)
    return record.read_text().strip() if record.is_file() else ''


def _renamed(checkpoint: Path) -> Path:
    """Give a whole folder whose writer was killed before it could do so its name."""
    final = checkpoint.with_name(checkpoint.name.removeprefix('.'))
    if final != checkpoint:
        replace_folder(checkpoint, final)
    return final


def replace_folder(new: Path, final: Path) -> None:
    """Put a folder, whole, in the place of another: at every moment one of the two is whole."""
    shutil.rmtree(final, ignore_errors=True)
    os.replace(new, final)


def record_last(work_dir: str | Path, checkpoint: str | Path) -> None:
    """Write down which checkpoint a run goes on from, as MMEngine's CheckpointHook does."""
    with replacing(Path(work_dir, LAST)) as file:
        file.unfinished.write_text(str(checkpoint))


def remove_unfinished(folder: str | Path) -> None:
    """Remove what a killed process left of checkpoints that it was writing in a folder of its own."""
    for path in Path(folder).glob('.*.pth.part'):
        path.unlink(missing_ok=True)
    for path in Path(folder).glob('.*.pth'):  # sharded
        shutil.rmtree(path)
