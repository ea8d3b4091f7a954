"""What a run writes to, keeps in and deletes from its work dir."""

import os
import resource
import signal
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from mmengine.fileio import FileClient, LocalBackend, register_backend

from revcol_mm.errors import CheckpointError, PreflightError

from .tiny_runs import Line, interrupt, make, newest_log, resume


def test_second_run_in_a_work_dir_is_refused_while_the_first_trains(tmp_path):
    with (
        FileLock(tmp_path / '.lock'),
        pytest.raises(PreflightError, match='another run trains in .*--work-dir'),
    ):
        make(tmp_path).train()
    make(tmp_path, max_iters=1).train()


def test_new_run_warns_that_it_replaces_checkpoints_of_an_earlier_one(tmp_path):
    make(tmp_path, max_iters=1).train()
    make(tmp_path, max_iters=1).train()
    log = newest_log(tmp_path)
    assert 'has checkpoints of an earlier run, such as iter_1.pth' in log and '--resume continues' in log


def test_unfinished_files_of_a_killed_run_are_removed(tmp_path):
    (tmp_path / '.iter_3.pth.part').write_bytes(b'half')
    (tmp_path / '.iter_4.pth').mkdir()
    (tmp_path / '._iter_4.pth').write_bytes(b'of macOS')
    make(tmp_path, max_iters=1).train()
    assert sorted(path.name for path in tmp_path.glob('.*')) == ['._iter_4.pth', '.lock']


def test_error_of_a_full_disk_names_the_newest_checkpoint(tmp_path, monkeypatch):
    sync = os.fsync

    def fail_for_third_checkpoint(number):
        if 'iter_3' in os.path.realpath(f'/proc/self/fd/{number}'):
            raise OSError(28, 'No space left on device')
        sync(number)

    monkeypatch.setattr(os, 'fsync', fail_for_third_checkpoint)
    message = rf'cannot write iter_3.pth in {tmp_path}: No space left on device; .* is {tmp_path}/iter_2.pth'
    with pytest.raises(CheckpointError, match=message):
        make(tmp_path).train()
    assert not list(tmp_path.glob('*iter_3*'))


def test_checkpoint_that_is_only_partly_written_leaves_no_file(tmp_path):
    """A limit on the size of files stands in for a full disk."""
    model = Line()
    model.layer = torch.nn.Linear(1, 500_000)  # checkpoints of 12 MB
    runner = make(tmp_path, model=model)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (6_000_000, limits[1]))
    message = rf'cannot write iter_1.pth in {tmp_path}: File too large; the newest checkpoint there is None'
    try:
        with pytest.raises(CheckpointError, match=message):
            runner.train()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not [path for path in tmp_path.rglob('*') if '.pth' in path.name]


def test_old_checkpoint_is_deleted_after_the_new_one_is_written(tmp_path, monkeypatch):
    num_checkpoints, replace = [], Path.replace

    def counting_replace(self, target):
        num_checkpoints.append(len(list(tmp_path.glob('iter_*.pth'))))
        return replace(self, target)

    monkeypatch.setattr(Path, 'replace', counting_replace)
    make(tmp_path, checkpoint=dict(max_keep_ckpts=1)).train()
    assert set(num_checkpoints[1:]) == {1}
    assert [path.name for path in tmp_path.glob('*.pth')] == ['iter_4.pth']


def test_best_checkpoint_is_deleted_after_a_better_one_is_written(tmp_path, monkeypatch):
    options = dict(checkpoint=dict(save_best='score', rule='greater'))
    runner = make(tmp_path, scores=[1, 2], **options)
    save = runner.save_checkpoint

    def full_disk(out_dir, filename, *args, **kwargs):
        if filename == 'best_score_iter_4.pth':
            raise CheckpointError('the disk is full')
        save(out_dir, filename, *args, **kwargs)

    monkeypatch.setattr(runner, 'save_checkpoint', full_disk)
    with pytest.raises(CheckpointError, match='full'):
        runner.train()
    assert [path.name for path in tmp_path.glob('best_*')] == ['best_score_iter_2.pth']
    resume(tmp_path, scores=[2], **options)
    assert [path.name for path in tmp_path.glob('best_*')] == ['best_score_iter_4.pth']


@pytest.mark.parametrize('kind', ['file', 'folder'])
def test_checkpoint_cannot_have_other_files_deleted(kind, tmp_path):
    """MMEngine deletes whatever the checkpoint that it resumes from names as the best checkpoint."""
    other = tmp_path / 'other'
    other.mkdir() if kind == 'folder' else other.write_text('important')
    options = dict(scores=[1, 2, 3, 4], checkpoint=dict(save_best='score', rule='greater', max_keep_ckpts=2))
    make(tmp_path / 'run', max_iters=2, **options).train()
    path = tmp_path / 'run/iter_2.pth'
    content = torch.load(path, weights_only=True)
    content['message_hub']['runtime_info'].update(best_ckpt=str(other), keep_ckpt_ids=['1', '../../other'])
    content['message_hub']['resumed_keys'].update(best_ckpt=True, keep_ckpt_ids=True)
    torch.save(content, path)
    resume(tmp_path / 'run', max_iters=4, **options)
    assert other.exists()


def test_checkpoints_of_interruptions_are_deleted_after_the_next_regular_one(tmp_path):
    options = dict(max_iters=9, checkpoint=dict(interval=4, max_keep_ckpts=1))
    for iteration in (1, 3, 4):  # the last one is a regular one, too
        interrupt(make(tmp_path, resume='auto', **options), iteration)
    assert [path.name for path in tmp_path.glob('iter_*')] == ['iter_4.pth']
    interrupt(make(tmp_path, resume='auto', **options), 7)
    assert {path.name for path in tmp_path.glob('iter_*')} == {'iter_4.pth', 'iter_7.pth'}
    resume(tmp_path, **options)
    assert [path.name for path in tmp_path.glob('iter_*')] == ['iter_9.pth']
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


class Bucket(LocalBackend):
    """Remote storage."""

    files = {}

    def put(self, obj, filepath):
        self.files[str(filepath)] = obj

    def join_path(self, filepath, *filepaths):
        return '/'.join([str(filepath), *filepaths])

    def isfile(self, filepath):
        return str(filepath) in self.files

    def isdir(self, filepath):
        return False

    def remove(self, filepath):
        del self.files[str(filepath)]


def test_remote_out_dir_gets_the_checkpoints(tmp_path, monkeypatch):
    register_backend('bucket', Bucket, prefixes='bucket', force=True)
    FileClient.register_backend('bucket', Bucket, prefixes='bucket', force=True)
    monkeypatch.chdir(tmp_path)
    Bucket.files.clear()
    make(tmp_path / 'run', max_iters=3, checkpoint=dict(out_dir='bucket://runs', max_keep_ckpts=2)).train()
    assert sorted(Bucket.files) == ['bucket://runs/run/iter_2.pth', 'bucket://runs/run/iter_3.pth']
    assert os.listdir(tmp_path) == ['run']
