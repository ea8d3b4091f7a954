"""Checkpoints of fully sharded training: folders of which every process of a run has written its part.

``torch.distributed.checkpoint`` keeps the tensors, in ``*.distcp`` files, whatever number of processes writes
and reads them. What else a checkpoint holds is in ``rest.pth``, as MMEngine writes checkpoints.
"""

import pickle
import re
import warnings
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import Any, Iterator

import torch
from torch import Tensor
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

REST = 'rest.pth'
_METADATA = '.metadata'  # where torch describes the tensors; written when all of them are
_SAFE = {
    ('collections', 'OrderedDict'),
    ('torch', 'Size'),
    ('torch.distributed.checkpoint.filesystem', '_StorageInfo'),
    ('torch.serialization', '_get_layout'),
    *(
        ('torch.distributed.checkpoint.metadata', name)
        for name in (
            *('ChunkStorageMetadata', 'Metadata', 'MetadataIndex', 'StorageMeta', 'TensorProperties'),
            *('TensorStorageMetadata', '_MEM_FORMAT_ENCODING'),
        )
    ),
}


class _MetadataUnpickler(pickle.Unpickler):
    """Reads torch's description of tensors, and refuses whatever does not belong in it."""

    def find_class(self, module: str, name: str) -> Any:
        if module in ('pathlib', 'pathlib._local') and name in ('PosixPath', 'WindowsPath'):
            return PurePath  # the folder that was written, perhaps by Python 3.13 or on another system
        is_dtype = module == 'torch' and isinstance(getattr(torch, name, None), torch.dtype)
        if not is_dtype and (module, name) not in _SAFE:
            raise pickle.UnpicklingError(f"{module}.{name} is not in a checkpoint's description of tensors")
        return super().find_class(module, name)


class _Reader(dcp.FileSystemReader):
    """torch's reader, which would run what is pickled in the description."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        folder = Path(self.path)
        with (folder / _METADATA).open('rb') as file:
            metadata = _MetadataUnpickler(file).load()
        _check_sizes(metadata, folder)
        return metadata


def _check_sizes(metadata: Metadata, folder: Path) -> None:
    """Refuse parts in files elsewhere, and tensors that take more memory than the files have bytes.

    Raises:
        pickle.UnpicklingError: If there are any.
    """
    stored = metadata.storage_data.values()
    if any(getattr(part, 'transform_descriptors', None) for part in stored):  # torch since 2.7
        raise pickle.UnpicklingError('it is compressed')
    names = {part.relative_path for part in stored}
    for name in names:
        if not isinstance(name, str) or not re.fullmatch(r'[\w.-]+\.distcp', name):
            raise pickle.UnpicklingError(f'{name!r} is none of the files of a sharded checkpoint')
    room = sum(file.stat().st_size for name in names if (file := folder / name).is_file())
    for name, tensor in metadata.state_dict_metadata.items():
        if isinstance(tensor, TensorStorageMetadata):
            room -= tensor.size.numel() * tensor.properties.dtype.itemsize
        if room < 0:
            raise pickle.UnpicklingError(f'{name} is larger than the files of the checkpoint')


def is_sharded(path: str | Path) -> bool:
    """Whether a path is a folder with a sharded checkpoint, whole or not."""
    return (Path(path) / _METADATA).is_file()


def has_all_shards(path: Path) -> bool:
    """Whether a sharded checkpoint has all bytes of its tensors; their checksums are not read.

    Raises:
        OSError: If a file is there and cannot be read, which does not mean that it is damaged.
    """
    try:
        stored = _Reader(path).read_metadata().storage_data.values()
        return all((path / s.relative_path).stat().st_size >= s.offset + s.length for s in stored)
    except (FileNotFoundError, EOFError, AttributeError, pickle.UnpicklingError):
        return False


def write_shards(tensors: dict[str, Any], path: Path) -> None:
    """Write this process's part of nested dicts of tensors; every process calls it.

    Raises:
        torch.distributed.checkpoint.CheckpointException: If a process cannot write.
    """
    with _quiet():
        dcp.save(tensors, storage_writer=dcp.FileSystemWriter(path))


def shapes(path: str | Path) -> dict[tuple[str, ...], tuple[torch.Size, torch.dtype]]:
    """Shape and type of every tensor of a sharded checkpoint, by the keys that lead to it."""
    metadata = _Reader(path).read_metadata()
    tensors = metadata.state_dict_metadata
    return {
        tuple(keys): (tensors[name].size, tensors[name].properties.dtype)
        for name, keys in metadata.planner_data.items()
    }


def load_shards(tensors: dict[str, Any], path: str | Path) -> None:
    """Fill tensors in nested dicts, sharded ones too, in place; every process of a group calls it."""
    dcp.load(tensors, storage_reader=_Reader(path))


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """All weights of a sharded checkpoint, whole, onto the CPU of each process."""
    weights = {
        keys[-1]: torch.empty(shape, dtype=dtype)
        for keys, (shape, dtype) in shapes(path).items()
        if keys[0] == 'state_dict'
    }
    with _quiet():
        dcp.load({'state_dict': weights}, storage_reader=_Reader(path), no_dist=True)
    return weights


@contextmanager
def _quiet() -> Iterator[None]:
    """Without torch's warnings about its own calls, and that a process reads alone."""
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', 'TypedStorage is deprecated')
        warnings.filterwarnings('ignore', 'torch.distributed is disabled')
        yield
