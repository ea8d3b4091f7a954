"""Damaged and malicious checkpoint files are errors, and take no more memory than their size."""

import gc
import pickle
import re
import shutil
import zipfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from revcol_mm import RevCol
from revcol_mm.checkpoints.reading import plain, read_checkpoint
from revcol_mm.checkpoints.run_files import is_complete
from revcol_mm.checkpoints.shards import REST, read_weights, write_shards
from revcol_mm.errors import CheckpointError

from .checkpoints import SMALL, Pickled


@pytest.fixture
def checkpoint(tmp_path):
    weights = RevCol(SMALL).state_dict()
    torch.save({'meta': {'seed': 0, 'iter': 1, 'epoch': 0}, 'state_dict': weights}, tmp_path / 'a.pth')
    return tmp_path / 'a.pth'


def compress(path):
    """Add a compressed part of 256 MiB."""
    with zipfile.ZipFile(path, 'a', zipfile.ZIP_DEFLATED) as archive:
        with archive.open('a/data/bomb', 'w', force_zip64=True) as part:
            for _ in range(16):
                part.write(bytes(2**24))


def overlap(path):
    """List the same bytes as 10,000 parts."""
    with zipfile.ZipFile(path, 'a') as archive:
        first = max(archive.infolist(), key=lambda part: part.file_size)
        archive.filelist.extend([first] * 10_000)
        archive._didModify = True


def ask_for_bytearray(path, **options):
    torch.save({'a': Pickled(bytearray, 2**38)}, path, **options)


@contextmanager
def memory_below(limit):
    """Check that the process never needs ``limit`` more bytes than before."""

    def resident(name):
        return 1024 * int(re.search(rf'^{name}:\s+(\d+) kB', Path('/proc/self/status').read_text(), re.M)[1])

    gc.collect()  # or garbage of earlier tests may be freed meanwhile
    Path('/proc/self/clear_refs').write_text('5')  # resets the peak, which earlier tests have raised
    before = resident('VmRSS')
    yield
    assert resident('VmHWM') - before < limit


def test_memory_below_sees_a_peak():
    with pytest.raises(AssertionError), memory_below(128 * 2**20):
        torch.ones(2**26)  # 256 MiB, freed at once


@pytest.mark.parametrize(
    'damage, message',
    [
        pytest.param(lambda path: path.write_bytes(b''), '', id='empty'),
        pytest.param(lambda path: path.write_bytes(path.read_bytes()[:-500]), '', id='truncated'),
        pytest.param(lambda path: path.write_bytes(path.read_bytes()[:100]), '', id='only the start'),
        pytest.param(lambda path: path.write_text('<html>'), '', id='web page'),
        pytest.param(lambda path: path.write_bytes(pickle.dumps(3)), '', id='pickled number'),
        pytest.param(lambda path: zipfile.ZipFile(path, 'w').close(), '', id='empty archive'),
        pytest.param(lambda path: torch.save([1], path), 'holds a list', id='list'),
        pytest.param(lambda path: torch.save(torch.ones(3), path), 'holds a Tensor', id='tensor'),
        pytest.param(compress, 'it is compressed', id='zip bomb'),
        pytest.param(overlap, 'it is compressed', id='overlapping zip bomb'),
        pytest.param(ask_for_bytearray, 'bytearray', id='pickle bomb'),
        pytest.param(
            lambda path: ask_for_bytearray(path, _use_new_zipfile_serialization=False),
            'bytearray',
            id='pickle bomb in the format before torch 1.6',
        ),
    ],
)
def test_bad_file_is_an_error_and_takes_no_memory(damage, message, checkpoint):
    damage(checkpoint)
    with (
        memory_below(128 * 2**20),
        pytest.raises(CheckpointError, match=f'^cannot read .*{message}') as error,
    ):
        read_checkpoint(checkpoint)
    assert '\n' not in str(error.value)
    if 'compressed' in message or 'bytearray' in message:
        assert not is_complete(checkpoint)  # --resume ignores it


@pytest.mark.parametrize('appended', [0, 65_536, 70_000])
def test_archive_with_appended_bytes_cannot_hide_a_compressed_part(appended, checkpoint):
    with zipfile.ZipFile(checkpoint, 'a', zipfile.ZIP_DEFLATED) as archive:
        archive.writestr('a/data/bomb', bytes(2**24))
    with checkpoint.open('ab') as file:
        file.write(bytes(appended))
    assert zipfile.is_zipfile(checkpoint) == (appended < 70_000)  # torch finds the archive in all cases
    with pytest.raises(CheckpointError, match='other data follow the archive|it is compressed'):
        read_checkpoint(checkpoint)


def test_tensor_that_repeats_few_bytes_is_refused(tmp_path):
    torch.save({'state_dict': {'a': torch.ones(1).expand(2**34)}}, tmp_path / 'a.pth')
    with pytest.raises(CheckpointError, match=f'weights would take {2**36} bytes'):
        read_checkpoint(tmp_path / 'a.pth')


def test_weight_with_two_names_is_read(tmp_path):
    shared = torch.ones(1000)
    torch.save({'state_dict': dict(a=shared, b=shared)}, tmp_path / 'a.pth')
    assert read_checkpoint(tmp_path / 'a.pth')['state_dict']['b'].shape == (1000,)


def shared_lists():
    value = [0]
    for _ in range(10):
        value = [value] * 10
    return value


def endless_list():
    value = []
    value.append(value)
    return value


@pytest.mark.parametrize(
    'value, message',
    [
        pytest.param(shared_lists(), 'over 1000000 items', id='shared lists'),
        pytest.param(endless_list(), 'contains itself', id='endless list'),
        pytest.param({'a': np.broadcast_to(np.int8(0), (2**40,))}, 'over 1000000 items', id='array'),
    ],
)
def test_metadata_with_too_many_items_are_refused(value, message):
    with pytest.raises(CheckpointError, match=message):
        plain(value)


def test_arrays_in_metadata_become_lists():
    assert plain(np.arange(3)) == [0, 1, 2]


@pytest.fixture
def shards(tmp_path):
    """A sharded checkpoint."""
    folder = tmp_path / 'iter_1.pth'
    write_shards({'state_dict': dict(a=torch.arange(100.0))}, folder)
    torch.save(dict(meta=dict(iter=1)), folder / REST)
    return folder


@pytest.fixture
def change_metadata(shards):
    """A function that changes the description of the tensors in the sharded checkpoint."""

    def change(edit):
        metadata = pickle.loads((shards / '.metadata').read_bytes())
        edit(metadata)
        (shards / '.metadata').write_bytes(pickle.dumps(metadata))

    return change


@pytest.mark.parametrize('where', ['/etc/passwd', '../outside.distcp', 'folder/a.distcp', '..', 3])
def test_shards_outside_of_their_folder_are_refused(where, shards, change_metadata):
    def move(metadata):
        for part in metadata.storage_data.values():
            part.relative_path = where

    shutil.copy(next(shards.glob('*.distcp')), shards.parent / 'outside.distcp')
    change_metadata(move)
    assert not is_complete(shards)
    with pytest.raises(pickle.UnpicklingError, match='none of the files of a sharded checkpoint'):
        read_weights(shards)


def test_shards_that_claim_more_than_their_size_are_refused(shards, change_metadata):
    def enlarge(metadata):
        metadata.state_dict_metadata['state_dict.a'].size = torch.Size([2**40])

    change_metadata(enlarge)
    with pytest.raises(CheckpointError, match='state_dict.a is larger than the files'):
        read_checkpoint(shards)


def test_compressed_shards_are_refused(shards, change_metadata):
    def compress(metadata):
        next(iter(metadata.storage_data.values())).transform_descriptors = ['zstd']

    change_metadata(compress)
    with pytest.raises(CheckpointError, match='it is compressed'):
        read_checkpoint(shards)
