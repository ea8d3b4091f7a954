"""Read checkpoints without running code that is pickled in them.

A published classification checkpoint holds, beside its weights, a pickled yacs config and a Python builtin,
which ``torch.load(weights_only=True)`` refuses. Here such objects are replaced while the file is read;
nothing that a file names is imported or called.
"""

import json
import mmap
import os
import re
import zipfile
from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from mmengine.fileio import get_local_path
from torch import Tensor

from revcol_mm.errors import CheckpointError

from .safe_globals import allow_mmengine_globals
from .shards import REST, is_sharded, read_weights
from .sources import is_remote, local_checkpoint

MAX_PLAIN = 1_000_000  # items that a checkpoint may hold beside its weights
MAX_SHARING = 8  # bytes of weights per byte of the file, for weights that share memory


class _Inert:
    """Replacement for any type that is pickled beside the weights: instances are read as an empty Counter.

    A Counter, because it is the only type whose items and state torch's unpickler both restores.
    """

    def __new__(cls, *args: Any) -> Counter:  # type: ignore[misc]  # as described above
        return Counter()


def read_checkpoint(source: str | Path, setting: str | None = 'model.backbone.init_cfg') -> dict[str, Any]:
    """Read a checkpoint onto the CPU: torch's format, safetensors, or a sharded folder.

    Tensors, containers, numbers and strings are returned as they are; any other pickled object is replaced by
    a Counter with its items, if it had any.

    Args:
        source: See :func:`local_checkpoint`; also an address that a file backend of MMEngine can fetch, such
            as s3://.
        setting: See :func:`local_checkpoint`.

    Raises:
        FileNotFoundError: See :func:`local_checkpoint`.
        CheckpointError: If the file is damaged or no checkpoint, does not hold a dict, names a global that
            cannot be replaced safely, or would take much more memory than its size; or if it is a safetensors
            file and that package is missing.
    """
    if is_remote(source):
        shown = str(source)
        opened = get_local_path(shown)
    else:
        shown = str(local_checkpoint(source, setting))
        opened = nullcontext(shown)
    try:
        with opened as path:
            return _read(Path(path), Path(shown).suffix)
    except Exception as error:  # torch, zipfile and file backends have no common error class
        raise CheckpointError(f'cannot read {shown}: {reason_in_one_line(error)}') from error


def reason_in_one_line(error: Exception) -> str:
    """Return why a file could not be read, without torch's advice to set ``weights_only=False``."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    told = re.search(r'(?:WeightsUnpickler error: |Trying to load )(.*)', str(error))
    return told[1].strip() if told else (str(error).strip() or type(error).__name__).splitlines()[0]


def check_size(path: str | Path) -> None:
    """Check that a file in torch's format cannot take much more memory than its size.

    Raises:
        ValueError: If parts of an archive are compressed or overlap, a pickle asks for a bytearray, of which
            a few bytes can allocate any amount of memory, or Python and torch disagree on whether the file is
            an archive. torch writes no such checkpoints.
    """
    with open(path, 'rb') as file:
        is_archive = file.read(4) == b'PK\3\4'  # torch's own test
    if is_archive != zipfile.is_zipfile(path):  # for example, if too many bytes follow the archive
        raise ValueError('the file is truncated, or other data follow the archive')
    if is_archive:
        with zipfile.ZipFile(path) as archive:
            parts = archive.infolist()
        size = sum(part.file_size for part in parts)
        if size > os.path.getsize(path) or any(part.compress_type != zipfile.ZIP_STORED for part in parts):
            raise ValueError(
                f'it is compressed, and would unpack to {size} bytes; torch compresses no checkpoint'
            )
    with open(path, 'rb') as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        if content.find(b'\nbytearray\n') >= 0:
            raise ValueError('it asks for a bytearray, which no checkpoint holds')


def _read(path: Path, suffix: str) -> dict[str, Any]:
    if is_sharded(path):
        return {**_read(path / REST, '.pth'), 'state_dict': read_weights(path)}
    if suffix == '.safetensors':
        return _read_safetensors(path)
    check_size(path)
    allow_mmengine_globals()
    try:
        unsafe = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except ValueError:  # the format before torch 1.6 cannot be examined: read with torch's own allow-list
        unsafe = []
    with torch.serialization.safe_globals([(_Inert, name) for name in unsafe]):
        checkpoint = torch.load(path, map_location='cpu', weights_only=True)
    if not isinstance(checkpoint, dict):
        raise ValueError(f'it holds a {type(checkpoint).__name__}, not a dict as checkpoints do')
    _check_strides(checkpoint, path.stat().st_size)
    return checkpoint


def _check_strides(checkpoint: dict[str, Any], size: int) -> None:
    """Check that no tensor is a few bytes that are repeated by a stride of 0.

    Weights that share memory, or occur under two names, are legitimate, so some sharing is allowed.

    Raises:
        ValueError: If all weights together take over :data:`MAX_SHARING` times the size of the file.
    """
    places = [checkpoint, *(value for value in checkpoint.values() if isinstance(value, dict))]
    tensors = [value for place in places for value in place.values() if isinstance(value, Tensor)]
    total = sum(tensor.nbytes for tensor in tensors)
    if total > MAX_SHARING * size:
        raise ValueError(f'its weights would take {total} bytes of memory, the file has {size}')


def _read_safetensors(path: Path) -> dict[str, Any]:
    safetensors = import_safetensors()
    try:
        with safetensors.safe_open(path, framework='pt') as file:
            weights = {name: file.get_tensor(name) for name in file.keys()}
            meta = json.loads((file.metadata() or {}).get('meta', '{}'))
    except safetensors.SafetensorError as error:
        raise ValueError(f'no safetensors file: {error}') from error
    return {'meta': meta, 'state_dict': weights}


def import_safetensors() -> ModuleType:
    """Import safetensors, or raise a RuntimeError that says how to install it."""
    try:
        import safetensors.torch
    except ModuleNotFoundError as error:
        raise RuntimeError('.safetensors files need safetensors: pip install safetensors') from error
    return safetensors


def plain(value: Any) -> Any:
    """Copy what JSON can hold: dicts, lists, numbers and strings. Anything else becomes None.

    Raises:
        CheckpointError: If the copy would have over :data:`MAX_PLAIN` items, as with nested lists that share
            lists, or if a container contains itself.
    """
    room = MAX_PLAIN

    def copy(value: Any) -> Any:
        nonlocal room
        is_array = isinstance(value, (np.ndarray, np.generic))
        room -= value.size if is_array else 1
        if room < 0:
            raise CheckpointError(f'the checkpoint holds over {MAX_PLAIN} items beside its weights')
        if is_array:
            value = value.tolist()
        if isinstance(value, dict) and not isinstance(value, Counter):
            return {str(key): copy(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [copy(item) for item in value]
        return value if isinstance(value, (str, int, float)) else None

    try:
        return copy(value)
    except RecursionError as error:
        raise CheckpointError('the checkpoint holds a list or dict that contains itself') from error
