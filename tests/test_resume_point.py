"""A run resumes from the newest undamaged checkpoint, the same in all processes, or not at all."""

import re
import shutil
import signal
import struct
import zipfile

import pytest
import torch

from revcol_mm.checkpoints.run_files import newest_complete_checkpoint
from revcol_mm.errors import CheckpointError
from revcol_mm.training.worker_shutdown import SIGNALS

from .checkpoints import assert_same_weights
from .subprocesses import run_in_processes
from .tiny_runs import Score, interrupt, make, newest_log, resume


def truncate(path):
    path.write_bytes(path.read_bytes()[:-100])


def flip_a_bit(path):
    with zipfile.ZipFile(path) as archive:
        part = max(archive.infolist(), key=lambda part: part.file_size)
    content = bytearray(path.read_bytes())
    lengths = struct.unpack_from('<HH', content, part.header_offset + 26)  # of the name and the extra field
    content[part.header_offset + 30 + sum(lengths) + part.file_size // 2] ^= 1
    path.write_bytes(content)


def test_resumed_run_equals_an_uninterrupted_one(tmp_path):
    unbroken = make(tmp_path / 'unbroken', max_iters=6)
    unbroken.train()
    (tmp_path / 'run').mkdir()
    shutil.copy(tmp_path / 'unbroken/iter_3.pth', tmp_path / 'run')
    resumed = resume(tmp_path / 'run', max_iters=6)
    assert_same_weights(resumed.model.state_dict(), unbroken.model.state_dict())
    assert resumed.optim_wrapper.get_lr() == unbroken.optim_wrapper.get_lr()


def test_run_is_resumed_although_another_package_has_forbidden_mmengine_s_types(tmp_path, monkeypatch):
    make(tmp_path, max_iters=2).train()
    monkeypatch.setattr('torch._weights_only_unpickler._marked_safe_globals_set', set())
    assert resume(tmp_path, max_iters=4).iter == 4


def test_damaged_checkpoints_are_named_and_an_older_one_is_used(tmp_path):
    unbroken = make(tmp_path).train()
    truncate(tmp_path / 'iter_4.pth')
    flip_a_bit(tmp_path / 'iter_3.pth')
    resumed = resume(tmp_path)
    damaged = re.findall(r'(iter_\d+.pth) is damaged and not used', newest_log(tmp_path))
    assert damaged == ['iter_4.pth', 'iter_3.pth']
    assert len(resumed.model.seen) == 2
    assert_same_weights(resumed.model.state_dict(), unbroken.state_dict())


def test_if_all_checkpoints_are_damaged_no_new_run_starts(tmp_path):
    make(tmp_path, max_iters=2).train()
    for path in tmp_path.glob('iter_*.pth'):
        truncate(path)
    before = (tmp_path / 'iter_1.pth').read_bytes()
    with pytest.raises(
        CheckpointError, match=r'all checkpoints in .* are damaged: iter_2\.pth, iter_1\.pth;'
    ):
        make(tmp_path, resume=True)
    assert (tmp_path / 'iter_1.pth').read_bytes() == before


def test_without_checkpoints_a_new_run_starts(tmp_path):
    resume(tmp_path)
    assert f'nothing to resume from in {tmp_path}: starting a new run' in newest_log(tmp_path)


def test_without_checkpoints_a_new_run_starts_from_the_weights_of_load_from(tmp_path):
    trained = make(tmp_path / 'trained').train()
    options = dict(resume='auto', load_from=str(tmp_path / 'trained/iter_4.pth'))
    resting = dict(optim_wrapper=dict(optimizer=dict(type='AdamW', lr=0.0)))
    new = make(tmp_path / 'new', max_iters=2, **options, **resting)
    assert_same_weights(new.train().state_dict(), trained.state_dict())
    assert len(new.model.seen) == 2
    resumed = make(tmp_path / 'new', max_iters=3, **options, **resting)  # load_from is not used
    resumed.train()
    assert len(resumed.model.seen) == 1


def test_checkpoint_without_the_optimizer_is_refused(tmp_path):
    make(tmp_path, scores=[1, 2], checkpoint=dict(save_best='score', rule='greater')).train()
    with pytest.raises(
        CheckpointError, match=r'best_score_iter_4.pth has no state of the optimizer.*load_from'
    ):
        make(tmp_path, resume=True, load_from=str(tmp_path / 'best_score_iter_4.pth'))


def test_missing_named_checkpoint_is_an_error(tmp_path):
    with pytest.raises(CheckpointError, match='cannot resume: missing.pth is damaged or does not exist'):
        make(tmp_path, resume=True, load_from='missing.pth')


@pytest.mark.parametrize('options', [dict(filename_tmpl='step_{:06d}_v2.pth'), dict(out_dir='{}/elsewhere')])
def test_checkpoints_in_other_folders_or_with_other_names_are_found(options, tmp_path):
    if 'out_dir' in options:
        options = dict(out_dir=f'{tmp_path}/elsewhere')
    make(tmp_path / 'run', max_iters=3, checkpoint=options).train()
    runner = resume(tmp_path / 'run', max_iters=5, checkpoint=options)
    assert len(runner.model.seen) == 2


def test_run_that_was_resumed_from_an_older_checkpoint_continues_from_there(tmp_path):
    make(tmp_path).train()
    make(tmp_path, resume=True, load_from=str(tmp_path / 'iter_2.pth'))  # killed before it saves
    assert newest_complete_checkpoint(tmp_path) == (tmp_path / 'iter_2.pth', [])


RANK = """
import os, sys
import torch.distributed as dist
from revcol_mm.training.resume_point import find_resume_point
from tests.subprocesses import leave_processes
rank, rendezvous, folder = int(sys.argv[1]), sys.argv[2], sys.argv[3]
os.chdir(f'{folder}/{rank}')
dist.init_process_group('gloo', init_method=f'file://{rendezvous}', rank=rank, world_size=2)
try:
    print('resumes from', find_resume_point('.', None, {}, lambda path: None).checkpoint)
except RuntimeError as error:
    print(error)
leave_processes()
"""


@pytest.mark.slow
@pytest.mark.parametrize('equal', [True, False])
def test_all_processes_resume_from_the_same_iteration_or_fail(equal, tmp_path):
    """Two machines that do not share the work dir."""
    make(tmp_path / '0').train()
    shutil.copytree(tmp_path / '0', tmp_path / '1')
    shutil.copy(tmp_path / '1/iter_4.pth', tmp_path / '1/iter_9.pth')  # not chosen: not in the main process
    if not equal:
        shutil.copy(tmp_path / '1/iter_2.pth', tmp_path / '1/iter_4.pth')
    printed = run_in_processes(RANK, tmp_path / 'rendezvous', tmp_path)
    expected = (
        'resumes from iter_4.pth' if equal else 'cannot resume: processes find different checkpoints at'
    )
    assert all(expected in text for text in printed)


def test_signal_in_validation_saves_the_weights_and_not_their_averages(tmp_path):
    options = dict(
        scores=[1, 2],
        custom_hooks=[dict(type='EMAHook', momentum=0.1)],
        default_hooks=dict(checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=3)),
    )
    make(tmp_path / 'unbroken', **options).train()
    interrupt(make(tmp_path / 'run', **options), 2, validating=True)
    assert [path.name for path in tmp_path.glob('run/*.pth')] == ['iter_2.pth']
    resume(tmp_path / 'run', **options)
    resumed, unbroken = (torch.load(tmp_path / run / 'iter_4.pth') for run in ('run', 'unbroken'))
    for key in ('state_dict', 'ema_state_dict'):
        assert_same_weights(resumed[key], unbroken[key])


def test_interrupted_validation_is_run_again_once(tmp_path, monkeypatch):
    interrupt(make(tmp_path, scores=[1, 2]), 4, validating=True)
    options = dict(scores=[7, 8], checkpoint=dict(save_best='score', rule='greater'))
    assert resume(tmp_path, **options).message_hub.get_scalar('val/score').current() == 7
    assert (tmp_path / 'best_score_iter_4.pth').exists()
    monkeypatch.setattr(Score, 'process', None)  # fails if called
    resume(tmp_path, **options)


def test_signal_in_a_validation_that_is_run_again_is_obeyed(tmp_path):
    interrupt(make(tmp_path, scores=[1, 2]), 2, validating=True)
    handlers = [signal.getsignal(number) for number in SIGNALS]
    interrupt(make(tmp_path, resume=True, scores=[1, 2]), 2, validating=True)
    assert [signal.getsignal(number) for number in SIGNALS] == handlers


def test_validation_of_an_earlier_run_in_the_work_dir_does_not_count(tmp_path):
    make(tmp_path, scores=[1, 2]).train()
    make(tmp_path).train()
    assert resume(tmp_path, scores=[7]).message_hub.get_scalar('val/score').current() == 7


def test_testing_does_not_build_the_training_loop(tmp_path):
    """Hooks ask the runner for its iteration."""
    runner = make(tmp_path, model=torch.nn.Identity(), train_dataloader=dict(dataset=dict(type='Missing')))
    assert (runner.iter, runner.epoch) == (0, 0)
