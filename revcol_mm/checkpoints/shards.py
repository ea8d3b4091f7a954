"""Sharded checkpoints: folders into which each process of fully sharded training writes its part.

``torch.distributed.checkpoint`` stores the tensors in ``*.distcp`` files, which any number of processes can
read. ``rest.pth`` holds everything else, in MMEngine's layout.
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
_METADATA = '.metadata'  # torch's description of the tensors, written after all of them
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
    """Unpickler for torch's description of the tensors, restricted to the classes in :data:`_SAFE`."""

    def find_class(self, module: str, name: str) -> Any:
        if module in ('pathlib', 'pathlib._local') and name in ('PosixPath', 'WindowsPath'):
            return PurePath  # the path may have been pickled by Python 3.13 or on another system
        is_dtype = module == 'torch' and isinstance(getattr(torch, name, None), torch.dtype)
        if not is_dtype and (module, name) not in _SAFE:
            raise pickle.UnpicklingError(f"{module}.{name} is not in a checkpoint's description of tensors")
        return super().find_class(module, name)


class _Reader(dcp.FileSystemReader):
    """torch's reader, but with :class:`_MetadataUnpickler` in place of ``pickle.load``."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        folder = Path(self.path)
        with (folder / _METADATA).open('rb') as file:
            metadata = _MetadataUnpickler(file).load()
        _check_sizes(metadata, folder)
        return metadata


def _check_sizes(metadata: Metadata, folder: Path) -> None:
    """Check that all parts lie in the folder, uncompressed, and that tensors are no larger than their files.

    Raises:
        pickle.UnpicklingError: If not.
    """
    stored = metadata.storage_data.values()
    if any(part.transform_descriptors for part in stored):
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
    """Return whether a path is the folder of a sharded checkpoint, complete or not."""
    return (Path(path) / _METADATA).is_file()


def has_all_shards(path: Path) -> bool:
    """Return whether the files of a sharded checkpoint are as long as its description says.

    Raises:
        OSError: If a file does not exist or cannot be read.
        Exception: Of any other class if the description is damaged, since it is pickled.
    """
    stored = _Reader(path).read_metadata().storage_data.values()
    return all((path / s.relative_path).stat().st_size >= s.offset + s.length for s in stored)


def write_shards(tensors: dict[str, Any], path: Path) -> None:
    """Write this process's part of nested dicts of tensors; every process must call it.

    Raises:
        torch.distributed.checkpoint.CheckpointException: If a process cannot write.
    """
    with _quiet():
        dcp.save(tensors, storage_writer=dcp.FileSystemWriter(path))


def shapes(path: str | Path) -> dict[tuple[str, ...], tuple[torch.Size, torch.dtype]]:
    """Return the shape and dtype of every tensor of a sharded checkpoint, by its keys in the nested dicts."""
    metadata = _Reader(path).read_metadata()
    tensors: Any = metadata.state_dict_metadata
    return {
        tuple(keys): (tensors[name].size, tensors[name].properties.dtype)
        for name, keys in metadata.planner_data.items()
    }


def load_shards(tensors: dict[str, Any], path: str | Path) -> None:
    """Load tensors in nested dicts in place; they may be sharded. Every process must call it."""
    dcp.load(tensors, storage_reader=_Reader(path))


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Return all weights of a sharded checkpoint, unsharded and on the CPU."""
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
    """Suppress torch's warnings about its own deprecated calls, and about reading in a single process."""
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', 'TypedStorage is deprecated')
        warnings.filterwarnings('ignore', 'torch.distributed is disabled')
        yield
