"""Read checkpoints without running anything that is pickled in them."""

import json
import mmap
import os
import re
import zipfile
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from mmengine.fileio import get_local_path
from torch import Tensor

from revcol_mm.errors import CheckpointError

from .shards import REST, is_sharded, read_weights
from .sources import is_remote, local_checkpoint

MAX_PLAIN = 1_000_000  # items of all that a checkpoint tells beside its weights
MAX_SHARING = 8  # bytes of weights for each byte of a file, where weights share memory


class _Inert:
    """Stands in for the type of whatever is pickled beside weights; of that, a Counter keeps items alone.

    Of the types whose items torch lets a file set, that is the one that may have a state as well.
    """

    def __new__(cls, *args: Any) -> Counter:
        return Counter()


def read_checkpoint(source: str, setting: str | None = 'model.backbone.init_cfg') -> dict[str, Any]:
    """Read a checkpoint onto the CPU: file or URL, in torch's format or as safetensors, or a sharded folder.

    Tensors, containers, numbers and strings come back as they are, any other pickled object as a Counter of
    its items, if it had any.

    Args:
        source: See :func:`local_checkpoint`; also what a file backend of MMEngine can fetch, such as s3://.
        setting: See :func:`local_checkpoint`.

    Raises:
        FileNotFoundError: See :func:`local_checkpoint`.
        CheckpointError: If the file is damaged, of another kind, holds something else than a dict, asks for
            something that is not even safe to replace or for more memory than it has bytes; or if it is a
            safetensors file and that package is missing.
    """
    if is_remote(source):
        suffix = Path(str(source)).suffix
        try:
            with get_local_path(str(source)) as path:
                return _read(Path(path), suffix)
        except Exception as error:  # of a backend, or as below
            raise CheckpointError(f'cannot read {source}: {unreadable_because(error)}') from error
    path = local_checkpoint(source, setting)
    try:
        return _read(path, path.suffix)
    except Exception as error:  # of files of others torch raises all sorts
        raise CheckpointError(f'cannot read {path}: {unreadable_because(error)}') from error


def unreadable_because(error: Exception) -> str:
    """What torch says of a file, in one line and without its advice to unpickle it the unsafe way."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    told = re.search(r'(?:WeightsUnpickler error: |Trying to load )(.*)', str(error))
    return told[1].strip() if told else (str(error).strip() or type(error).__name__).splitlines()[0]


def check_size(path: str | Path) -> None:
    """Refuse what unpacks to much more than the file has bytes, which no checkpoint of torch does.

    Raises:
        ValueError: If parts of an archive are compressed or overlap, or a pickle asks for a bytearray, by
            which a few bytes can fill any memory; or Python and torch do not agree whether it is an archive.
    """
    with open(path, 'rb') as file:
        is_archive = file.read(4) == b'PK\3\4'  # as torch tells
    if is_archive != zipfile.is_zipfile(path):  # such as one behind whose end there is too much else
        raise ValueError('it is half an archive')
    if is_archive:
        with zipfile.ZipFile(path) as archive:
            parts = archive.infolist()
        size = sum(part.file_size for part in parts)
        if size > os.path.getsize(path) or any(part.compress_type != zipfile.ZIP_STORED for part in parts):
            raise ValueError(f'it is compressed, to unpack to {size} bytes; torch compresses no checkpoint')
    with open(path, 'rb') as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        if content.find(b'\nbytearray\n') >= 0:
            raise ValueError('it asks for a bytearray, which no checkpoint holds')


def _read(path: Path, suffix: str) -> dict[str, Any]:
    if is_sharded(path):
        return {**_read(path / REST, '.pth'), 'state_dict': read_weights(path)}
    if suffix == '.safetensors':
        return _read_safetensors(path)
    check_size(path)
    try:
        unsafe = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except ValueError:  # torch's format before 1.6: read as weights only
        unsafe = []
    with torch.serialization.safe_globals([(_Inert, name) for name in unsafe]):
        checkpoint = torch.load(path, map_location='cpu', weights_only=True)
    if not isinstance(checkpoint, dict):
        raise ValueError(f'it holds a {type(checkpoint).__name__}, not a dict as checkpoints do')
    _check_strides(checkpoint, path.stat().st_size)
    return checkpoint


def _check_strides(checkpoint: dict[str, Any], size: int) -> None:
    """Refuse weights that are few bytes in the file, seen again and again.

    Raises:
        ValueError: If all weights together take much more memory than the file has bytes. Weights that
            share memory, or are there under two names, are honest.
    """
    places = [checkpoint, *(value for value in checkpoint.values() if isinstance(value, dict))]
    tensors = [value for place in places for value in place.values() if isinstance(value, Tensor)]
    total = sum(tensor.nbytes for tensor in tensors)
    if total > MAX_SHARING * size:
        raise ValueError(f'its weights unfold to {total} bytes')


def _read_safetensors(path: Path) -> dict[str, Any]:
    safetensors = _safetensors()
    try:
        with safetensors.safe_open(path, framework='pt') as file:
            weights = {name: file.get_tensor(name) for name in file.keys()}
            meta = json.loads((file.metadata() or {}).get('meta', '{}'))
    except safetensors.SafetensorError as error:
        raise ValueError(f'no safetensors file: {error}') from error
    return {'meta': meta, 'state_dict': weights}


def _safetensors() -> ModuleType:
    try:
        import safetensors.torch
    except ModuleNotFoundError as error:
        raise RuntimeError('.safetensors files need safetensors: pip install safetensors') from error
    return safetensors


def plain(value: Any) -> Any:
    """Copy what JSON can hold: dicts, lists, numbers and strings; None stands for anything else.

    Raises:
        CheckpointError: If it is larger than any honest one: lists that share lists, or contain themselves,
            unfold without end.
    """
    room = MAX_PLAIN

    def copy(value: Any) -> Any:
        nonlocal room
        is_array = isinstance(value, (np.ndarray, np.generic))
        room -= value.size if is_array else 1
        if room < 0:
            raise CheckpointError(f'beside weights the checkpoint unfolds to over {MAX_PLAIN} items')
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
        raise CheckpointError('what the checkpoint holds beside weights contains itself') from error
