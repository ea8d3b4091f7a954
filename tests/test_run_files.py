"""Checkpoint files are complete or absent, and the one to resume from is found."""

import os
import shutil
from pathlib import Path

import pytest
import torch
from mmengine.fileio import get_file_backend

from revcol_mm.checkpoints import run_files
from revcol_mm.checkpoints.run_files import is_complete, newest_complete_checkpoint
from revcol_mm.checkpoints.shards import REST, write_shards
from revcol_mm.errors import CheckpointError

from .tiny_runs import make

NO_SPACE = OSError(28, 'No space left on device')


@pytest.fixture
def backend():
    return get_file_backend(backend_args=dict(backend='atomic'))


def save(path, iteration=0):
    meta = dict(iter=iteration, epoch=0, seed=0)
    torch.save(dict(a=torch.ones(100), meta=meta, optimizer={}), path)


def save_sharded(path, iteration=4):
    write_shards({'state_dict': dict(a=torch.ones(100))}, path)
    save(path / REST, iteration)


def test_failed_write_leaves_the_previous_file(backend, tmp_path, monkeypatch):
    path = tmp_path / 'new' / 'a.pth'
    backend.put(b'old', path)

    def fail(_):
        raise NO_SPACE

    monkeypatch.setattr(os, 'fsync', fail)
    with pytest.raises(OSError, match='No space left'):
        backend.put(b'new', path)
    assert path.read_bytes() == b'old' and os.listdir(path.parent) == ['a.pth']


@pytest.mark.parametrize('umask, mode', [(0o022, 0o644), (0o077, 0o600)])
def test_file_has_the_mode_of_new_files(umask, mode, backend, tmp_path):
    previous = os.umask(umask)
    try:
        backend.put(b'1', tmp_path / 'a.pth')
    finally:
        os.umask(previous)
    assert (tmp_path / 'a.pth').stat().st_mode & 0o777 == mode


def test_file_and_its_folder_are_synced_to_the_disk(backend, tmp_path, monkeypatch):
    synced, sync = [], os.fsync
    monkeypatch.setattr(
        os, 'fsync', lambda number: (synced.append(os.path.realpath(f'/proc/self/fd/{number}')), sync(number))
    )
    backend.put(b'1', tmp_path / 'a.pth')
    assert synced == [str(tmp_path / '.a.pth.part'), str(tmp_path)]


def test_newest_checkpoint_is_that_of_most_iterations_and_not_damaged(tmp_path):
    assert newest_complete_checkpoint(tmp_path) == (None, [])
    for iteration, name in enumerate(('epoch_9', 'iter_3', 'best_mIoU_iter_4', 'iter_12')):
        save(tmp_path / f'{name}.pth', iteration)
    newest = tmp_path / 'iter_12.pth'
    assert newest_complete_checkpoint(tmp_path) == (newest, [])
    newest.write_bytes(b'')
    assert newest_complete_checkpoint(tmp_path) == (tmp_path / 'iter_3.pth', [newest])
    assert not is_complete(tmp_path / 'missing.pth')


def test_file_dates_do_not_matter(tmp_path):
    for number in range(1, 5):
        save(tmp_path / f'iter_{number}.pth', number)
        os.utime(tmp_path / f'iter_{number}.pth', (5 - number, 5 - number))
    newest = tmp_path / 'iter_4.pth'
    assert newest_complete_checkpoint(tmp_path) == (newest, [])
    run_files.record_last(tmp_path, newest)
    assert newest_complete_checkpoint(tmp_path) == (newest, [])


def test_remote_checkpoints_must_be_copied_to_resume(tmp_path):
    for last in (None, 's3://bucket/run/iter_4.pth'):
        if last:
            (tmp_path / 'last_checkpoint').write_text(last)
        with pytest.raises(CheckpointError, match='cannot resume from s3://bucket: copy a checkpoint'):
            make(tmp_path, resume=True, checkpoint=dict(out_dir='s3://bucket'))


def test_local_checkpoint_of_an_interrupted_run_is_used_though_others_are_remote(tmp_path):
    save(tmp_path / 'iter_2.pth', 2)
    run_files.record_last(tmp_path, tmp_path / 'iter_2.pth')
    assert newest_complete_checkpoint(tmp_path, 's3://bucket') == (tmp_path / 'iter_2.pth', [])


def test_complete_sharded_checkpoint_that_was_not_renamed_is_found(tmp_path):
    unfinished, final = tmp_path / '.iter_4.pth', tmp_path / 'iter_4.pth'
    save_sharded(unfinished)
    final.mkdir()  # partly deleted
    assert newest_complete_checkpoint(tmp_path)[0] == final
    assert is_complete(final) and not unfinished.exists()


def test_incomplete_sharded_checkpoint_is_not_used(tmp_path):
    save_sharded(tmp_path / 'iter_4.pth')
    shutil.copytree(tmp_path / 'iter_4.pth', tmp_path / '.iter_8.pth')
    next((tmp_path / '.iter_8.pth').glob('*.distcp')).unlink()
    assert newest_complete_checkpoint(tmp_path)[0] == tmp_path / 'iter_4.pth'


@pytest.mark.parametrize(
    'pickled', [b'\x80\x04X\x01\x00\x00\x00\xff.', b'\x80\x04K\x01)R.', b'0.', b''], ids=repr
)
def test_sharded_checkpoint_with_a_damaged_description_is_damaged(pickled, tmp_path):
    """Unpickling raises UnicodeDecodeError, TypeError, IndexError or UnpicklingError, and EOFError."""
    save_sharded(tmp_path / 'iter_4.pth')
    (tmp_path / 'iter_4.pth/.metadata').write_bytes(pickled)
    assert not is_complete(tmp_path / 'iter_4.pth')


def test_order_of_unreadable_checkpoints_is_that_of_the_number_in_the_template(tmp_path):
    for number in (9, 10):
        (tmp_path / f'step_{number:04d}_v2.pth').touch()
    paths = run_files.saved_checkpoints(tmp_path, filename_tmpl='step_{:04d}_v2.pth')
    assert [path.name for path in paths] == ['step_0010_v2.pth', 'step_0009_v2.pth']


def fail_to_read(path):
    raise OSError(5, 'Input/output error', str(path))


def test_checkpoint_that_cannot_be_read_is_an_error_and_not_damaged(tmp_path, monkeypatch):
    save(tmp_path / 'iter_2.pth')
    monkeypatch.setattr(run_files, 'check_size', fail_to_read)
    with pytest.raises(CheckpointError, match=r'cannot resume: .*iter_2\.pth: Input/output error'):
        make(tmp_path, resume=True)


def test_shards_that_cannot_be_read_are_an_error_and_not_damaged(tmp_path, monkeypatch):
    save_sharded(tmp_path / 'iter_4.pth')
    open_file = Path.open

    def fail_for_metadata(self, *args, **kwargs):
        return fail_to_read(self) if self.name == '.metadata' else open_file(self, *args, **kwargs)

    monkeypatch.setattr(Path, 'open', fail_for_metadata)
    with pytest.raises(CheckpointError, match=r'cannot resume: .*\.metadata: Input/output error'):
        newest_complete_checkpoint(tmp_path)


def test_getattr_in_a_checkpoint_is_refused(tmp_path):
    class Getattr:
        def __reduce__(self):
            return getattr, (torch.Tensor, 'tolist')

    torch.save({'a': Getattr()}, tmp_path / 'a.pth')
    with pytest.raises(Exception, match='getattr.*tolist'):
        torch.load(tmp_path / 'a.pth', weights_only=True)
