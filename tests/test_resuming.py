"""What a run resumes from, that nothing of it is lost or mixed, and what a changed config does to it."""

import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from mmengine.evaluator import BaseMetric
from mmengine.fileio import FileClient, LocalBackend, get_file_backend, register_backend
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, MODELS
from torch import nn
from torch.utils.data import Dataset

from revcol_mm.checkpoints import run_files
from revcol_mm.checkpoints.run_files import is_whole, newest_whole_checkpoint
from revcol_mm.checkpoints.shards import REST, write_shards
from revcol_mm.errors import CheckpointError, PreflightError
from revcol_mm.training.interruption import INTERRUPTED
from revcol_mm.training.runner import ResumableRunner

from .subprocesses import run


@DATASETS.register_module()
class Numbers(Dataset):
    """Numbers from 0 on; the batches that a run has seen are in ``seen``."""

    metainfo = {}

    def __init__(self, length=12):
        self.length = length

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        return dict(inputs=torch.tensor([float(index)]))


@MODELS.register_module()
class Line(BaseModel):
    """y = wx + b."""

    def __init__(self, width=1):
        super().__init__()
        self.layer = nn.Linear(1, width)
        self.seen = []

    def forward(self, inputs, mode='loss'):
        inputs = torch.stack(list(inputs))
        if mode == 'predict':
            return list(inputs)
        self.seen.append(inputs.flatten().tolist())
        return dict(loss=(self.layer(inputs / 12) - 1).square().mean())


class Score(BaseMetric):
    """A score that rises with each validation, or is as given."""

    def __init__(self, scores):
        super().__init__()
        self.scores = iter(scores)

    def process(self, data_batch, data_samples):
        self.results.append(0)

    def compute_metrics(self, results):
        return dict(score=next(self.scores))


def make(work_dir, max_iters=4, batch_size=2, scores=(), hooks=(), width=1, length=12, **options):
    """A runner that saves in every iteration, and validates in every second one if there are scores."""
    torch.manual_seed(0)
    checkpoint = dict(type='CheckpointHook', by_epoch=False, interval=1, **options.pop('checkpoint', {}))
    loader = dict(num_workers=0, dataset=dict(type='Numbers', length=length))
    validation = dict(
        val_dataloader=dict(loader, batch_size=6, sampler=dict(type='DefaultSampler')),
        val_cfg=dict(type='ValLoop'),
        val_evaluator=[Score(scores)],
    )
    return ResumableRunner(
        **{
            **dict(
                model=dict(type='Line', width=width),
                work_dir=str(work_dir),
                train_dataloader=dict(loader, batch_size=batch_size, sampler=dict(type='InfiniteSampler')),
                train_cfg=dict(type='IterBasedTrainLoop', max_iters=max_iters, val_interval=2),
                optim_wrapper=dict(optimizer=dict(type='AdamW', lr=0.1, weight_decay=0.1)),
                param_scheduler=[
                    dict(type='LinearLR', start_factor=0.1, begin=0, end=1, by_epoch=False),
                    dict(type='PolyLR', begin=1, end=max(max_iters, 2), by_epoch=False),
                ],
                default_hooks=dict(checkpoint=checkpoint),
                custom_hooks=list(hooks),
                randomness=dict(seed=None if options.get('resume') else 3),
                experiment_name=f'{time.time_ns()}',
                **(validation if scores else {}),
            ),
            **options,
        }
    )


def go_on(work_dir, **options):
    """Resume a run and train it to its end."""
    runner = make(work_dir, resume=True, **options)
    runner.train()
    return runner


def damage(path):
    path.write_bytes(path.read_bytes()[:-100])


# Which checkpoint.


def test_dates_of_files_do_not_matter(tmp_path):
    make(tmp_path).train()
    for number, name in enumerate(('iter_4', 'iter_3', 'iter_2', 'iter_1')):
        os.utime(tmp_path / f'{name}.pth', (number, number))
    assert newest_whole_checkpoint(tmp_path) == (tmp_path / 'iter_4.pth', [])
    (tmp_path / 'last_checkpoint').unlink()
    assert newest_whole_checkpoint(tmp_path) == (tmp_path / 'iter_4.pth', [])


def test_a_run_that_went_back_goes_on_from_where_it_went(tmp_path):
    make(tmp_path).train()
    make(tmp_path, resume=True, load_from=str(tmp_path / 'iter_2.pth'))  # and is killed
    assert newest_whole_checkpoint(tmp_path) == (tmp_path / 'iter_2.pth', [])


def test_with_damaged_checkpoints_alone_nothing_begins_anew(tmp_path):
    make(tmp_path, max_iters=2).train()
    for path in tmp_path.glob('iter_*.pth'):
        damage(path)
    before = (tmp_path / 'iter_1.pth').read_bytes()
    with pytest.raises(
        CheckpointError, match=r'all checkpoints in .* are damaged: iter_2\.pth, iter_1\.pth;'
    ):
        make(tmp_path, resume=True)
    assert (tmp_path / 'iter_1.pth').read_bytes() == before


def test_with_no_checkpoint_the_run_begins_and_says_so(tmp_path):
    go_on(tmp_path)
    (log,) = tmp_path.glob('*/*.log')
    assert f'nothing to resume from in {tmp_path}: the run begins' in log.read_text()


@pytest.mark.parametrize('options', [dict(filename_tmpl='step_{}.pth'), dict(out_dir='{}/elsewhere')])
def test_checkpoints_elsewhere_or_of_other_names_are_found(options, tmp_path):
    options = {
        key: value.format(tmp_path) + '' if key == 'out_dir' else value for key, value in options.items()
    }
    make(tmp_path / 'run', max_iters=3, checkpoint=options).train()
    runner = go_on(tmp_path / 'run', max_iters=5, checkpoint=options)
    assert len(runner.model.seen) == 2


def test_an_error_of_the_disk_is_no_damage(tmp_path, monkeypatch):
    make(tmp_path, max_iters=2).train()

    def fail(path):
        raise OSError(5, 'Input/output error', str(path))

    monkeypatch.setattr(run_files, 'check_size', fail)
    with pytest.raises(CheckpointError, match=r'cannot resume: .*iter_2\.pth: Input/output error'):
        make(tmp_path, resume=True)


def test_a_run_does_not_resume_from_a_store_that_it_cannot_look_into(tmp_path):
    remote = dict(out_dir='s3://bucket')
    for last in (None, 's3://bucket/run/iter_4.pth'):
        if last:
            (tmp_path / 'last_checkpoint').write_text(last)
        with pytest.raises(CheckpointError, match='cannot resume from s3://bucket: copy a checkpoint'):
            make(tmp_path, resume=True, checkpoint=remote)


def test_what_a_signal_saved_beside_a_store_is_resumed_from(tmp_path):
    make(tmp_path, max_iters=2).train()  # which writes here, as a run does that a signal ends
    found = newest_whole_checkpoint(tmp_path, 's3://bucket')
    assert found == (tmp_path / 'iter_2.pth', [])


def test_shards_that_were_written_but_not_renamed_are_found(tmp_path):
    """At every moment the old folder or the new one is whole."""
    shards = tmp_path / '.iter_4.pth'
    write_shards({'state_dict': dict(a=torch.ones(100))}, shards)
    torch.save(dict(meta=dict(iter=4, epoch=0, seed=0)), shards / REST)
    (tmp_path / 'iter_4.pth').mkdir()  # half of it has been deleted
    final, _ = newest_whole_checkpoint(tmp_path)
    assert final == tmp_path / 'iter_4.pth' and is_whole(final) and not shards.exists()
    shutil.copytree(final, tmp_path / '.iter_8.pth')
    next((tmp_path / '.iter_8.pth').glob('*.distcp')).unlink()
    assert newest_whole_checkpoint(tmp_path)[0] == final


def test_an_error_of_the_disk_is_no_damage_of_shards(tmp_path, monkeypatch):
    shards = tmp_path / 'iter_4.pth'
    write_shards({'state_dict': dict(a=torch.ones(100))}, shards)
    torch.save(dict(meta=dict(iter=4, epoch=0, seed=0)), shards / REST)
    open_file = Path.open

    def fail(self, *args, **kwargs):
        if self.name == '.metadata':
            raise OSError(5, 'Input/output error', str(self))
        return open_file(self, *args, **kwargs)

    monkeypatch.setattr(Path, 'open', fail)
    with pytest.raises(CheckpointError, match=r'cannot resume: .*\.metadata: Input/output error'):
        newest_whole_checkpoint(tmp_path)


RANK = """
import os, sys
import torch.distributed as dist
from revcol_mm.training.resuming import find_resume_point
rank, rendezvous, folder = int(sys.argv[1]), sys.argv[2], sys.argv[3]
os.chdir(f'{folder}/{rank}')
dist.init_process_group('gloo', init_method=f'file://{rendezvous}', rank=rank, world_size=2)
try:
    print('goes on from', find_resume_point('.', None, {}, lambda path: None).checkpoint)
except RuntimeError as error:
    print(error)
dist.barrier()
dist.destroy_process_group()
"""


@pytest.mark.parametrize('equal', [True, False])
def test_processes_resume_from_one_iteration_or_none(equal, tmp_path):
    """Each of two machines has a work dir of its own."""
    make(tmp_path / '0').train()
    shutil.copytree(tmp_path / '0', tmp_path / '1')
    shutil.copy(tmp_path / '1/iter_4.pth', tmp_path / '1/iter_9.pth')  # only the main process chooses
    if not equal:
        shutil.copy(tmp_path / '1/iter_2.pth', tmp_path / '1/iter_4.pth')
    with ThreadPoolExecutor(2) as pool:
        said = pool.map(lambda rank: run('-c', RANK, rank, tmp_path / 'rendezvous', tmp_path), range(2))
    expected = (
        'goes on from iter_4.pth' if equal else 'cannot resume: processes find different checkpoints at'
    )
    assert all(expected in text for text in said)


# One run in a work dir, and what it leaves there.


def test_a_second_run_in_a_work_dir_is_refused(tmp_path):
    with (
        FileLock(tmp_path / '.lock'),
        pytest.raises(PreflightError, match='another run trains in .*--work-dir'),
    ):
        make(tmp_path).train()
    make(tmp_path, max_iters=1).train()


def test_a_run_that_will_replace_another_one_s_checkpoints_says_so(tmp_path):
    make(tmp_path, max_iters=1).train()
    make(tmp_path, max_iters=1).train()
    log = sorted(tmp_path.glob('*/*.log'), key=lambda path: path.stat().st_mtime_ns)[-1].read_text()
    assert 'has checkpoints of an earlier run, such as iter_1.pth' in log and '--resume goes on' in log


def test_what_a_killed_process_left_unfinished_is_removed(tmp_path):
    (tmp_path / '.iter_3.pth.part').write_bytes(b'half')
    (tmp_path / '.iter_4.pth').mkdir()
    make(tmp_path, max_iters=1).train()
    assert [path.name for path in tmp_path.glob('.*')] == ['.lock']


def test_new_files_have_the_user_s_mode_and_their_folder_is_on_the_disk(tmp_path, monkeypatch):
    synced = []
    sync = os.fsync
    monkeypatch.setattr(
        os, 'fsync', lambda number: (synced.append(os.path.realpath(f'/proc/self/fd/{number}')), sync(number))
    )
    mask = os.umask(0o077)
    try:
        get_file_backend(backend_args=dict(backend='atomic')).put(b'1', tmp_path / 'a.pth')
    finally:
        os.umask(mask)
    assert (tmp_path / 'a.pth').stat().st_mode & 0o777 == 0o600
    assert synced == [str(tmp_path / '.a.pth.part'), str(tmp_path)]


class Bucket(LocalBackend):
    """A store that is reached by a prefix of its own."""

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


def test_a_remote_folder_gets_the_checkpoints(tmp_path, monkeypatch):
    register_backend('bucket', Bucket, prefixes='bucket', force=True)
    FileClient.register_backend('bucket', Bucket, prefixes='bucket', force=True)
    monkeypatch.chdir(tmp_path)
    Bucket.files.clear()
    make(tmp_path / 'run', max_iters=3, checkpoint=dict(out_dir='bucket://runs', max_keep_ckpts=2)).train()
    assert sorted(Bucket.files) == ['bucket://runs/run/iter_2.pth', 'bucket://runs/run/iter_3.pth']
    assert os.listdir(tmp_path) == ['run']


def test_one_checkpoint_may_be_kept_and_is_deleted_when_the_next_is_written(tmp_path, monkeypatch):
    held = []
    replace = Path.replace
    monkeypatch.setattr(
        Path,
        'replace',
        lambda self, to: (held.append(len(list(tmp_path.glob('iter_*.pth')))), replace(self, to))[1],
    )
    make(tmp_path, checkpoint=dict(max_keep_ckpts=1)).train()
    assert set(held[1:]) == {1}
    assert [path.name for path in tmp_path.glob('*.pth')] == ['iter_4.pth']


def test_the_best_checkpoint_goes_when_a_better_one_is_written(tmp_path, monkeypatch):
    runner = make(tmp_path, scores=[1, 2], checkpoint=dict(save_best='score', rule='greater'))
    save = runner.save_checkpoint

    def full(out_dir, filename, *args, **kwargs):
        if filename == 'best_score_iter_4.pth':
            raise CheckpointError('the disk is full')
        save(out_dir, filename, *args, **kwargs)

    monkeypatch.setattr(runner, 'save_checkpoint', full)
    with pytest.raises(CheckpointError, match='full'):
        runner.train()
    assert [path.name for path in tmp_path.glob('best_*')] == ['best_score_iter_2.pth']
    go_on(tmp_path, max_iters=4, scores=[2], checkpoint=dict(save_best='score', rule='greater'))
    assert [path.name for path in tmp_path.glob('best_*')] == ['best_score_iter_4.pth']


@pytest.mark.parametrize('kind', ['file', 'folder'])
def test_a_checkpoint_cannot_have_other_files_deleted(kind, tmp_path):
    """MMEngine deletes what the checkpoint that it resumes from calls the best one."""
    mine = tmp_path / 'mine'
    mine.mkdir() if kind == 'folder' else mine.write_text('dear')
    options = dict(scores=[1, 2, 3, 4], checkpoint=dict(save_best='score', rule='greater', max_keep_ckpts=2))
    make(tmp_path / 'run', max_iters=2, **options).train()
    path = tmp_path / 'run/iter_2.pth'
    content = torch.load(path, weights_only=True)
    content['message_hub']['runtime_info'].update(best_ckpt=str(mine), keep_ckpt_ids=['1', '../../mine'])
    content['message_hub']['resumed_keys'].update(best_ckpt=True, keep_ckpt_ids=True)
    torch.save(content, path)
    go_on(tmp_path / 'run', max_iters=4, **options)
    assert mine.exists()


# Validation.


def test_a_validation_that_was_interrupted_is_made_up_for(tmp_path, monkeypatch):
    runner = make(tmp_path, scores=[1, 2])
    validate = Score.process

    def interrupted(self, *args):
        if runner.iter == 4:
            os.kill(os.getpid(), 15)
        validate(self, *args)

    monkeypatch.setattr(Score, 'process', interrupted)
    with pytest.raises(SystemExit) as exit:
        runner.train()
    assert exit.value.code == INTERRUPTED
    monkeypatch.undo()
    options = dict(scores=[7, 8], checkpoint=dict(save_best='score', rule='greater'))
    assert go_on(tmp_path, **options).message_hub.get_scalar('val/score').current() == 7
    assert (tmp_path / 'best_score_iter_4.pth').exists()
    monkeypatch.setattr(Score, 'process', None)
    go_on(tmp_path, **options)  # it has been done now


# A config that has changed.


def rates(runner):
    return [group['lr'] for group in runner.optim_wrapper.param_groups]


def assert_as_if_always(runner, unbroken):
    assert rates(runner) == rates(unbroken)
    for name, weight in unbroken.model.state_dict().items():
        assert torch.equal(runner.model.state_dict()[name], weight), name


def test_under_the_same_config_a_run_goes_on_to_the_bit(tmp_path):
    unbroken = make(tmp_path / 'unbroken', max_iters=6)
    unbroken.train()
    (tmp_path / 'run').mkdir()
    shutil.copy(tmp_path / 'unbroken/iter_3.pth', tmp_path / 'run')
    assert_as_if_always(go_on(tmp_path / 'run', max_iters=6), unbroken)


@pytest.mark.parametrize(
    'changes',
    [
        pytest.param(dict(), id='more iterations, and a schedule to their end'),
        pytest.param(
            dict(optim_wrapper=dict(optimizer=dict(type='AdamW', lr=0.5, weight_decay=0))), id='learning rate'
        ),
        pytest.param(
            dict(param_scheduler=[dict(type='MultiStepLR', milestones=[1, 5], by_epoch=False)]), id='schedule'
        ),
        pytest.param(dict(param_scheduler=[dict(type='PolyLR', by_epoch=False)]), id='an end by default'),
        pytest.param(dict(param_scheduler=None), id='no schedule'),
    ],
)
def test_learning_rates_are_those_of_the_new_config(changes, tmp_path):
    make(tmp_path / 'run', max_iters=4).train()
    new = make(tmp_path / 'new', max_iters=8, **changes)
    new.train()
    runner = go_on(tmp_path / 'run', max_iters=8, **changes)
    assert rates(runner) == rates(new)
    (group,), (expected,) = runner.optim_wrapper.param_groups, new.optim_wrapper.param_groups
    assert group['weight_decay'] == expected['weight_decay']
    (log,) = [path for path in tmp_path.glob('run/*/*.log') if 'goes on with another' in path.read_text()]
    assert 'train_cfg' in log.read_text()


@pytest.mark.parametrize('batch_size, seen', [(4, 4), (1, 16), (3, 5)])
def test_with_other_batches_no_sample_is_left_out(batch_size, seen, tmp_path):
    """After 4 batches of 2, of 24 samples that the unbroken run draws."""
    unbroken = make(tmp_path / 'unbroken', max_iters=12)
    unbroken.train()
    samples = [*chain(*unbroken.model.seen)]
    make(tmp_path / 'run', max_iters=4).train()
    runner = go_on(tmp_path / 'run', max_iters=4 + 2, batch_size=batch_size)
    begin = 8 // batch_size * batch_size
    assert [*chain(*runner.model.seen)] == samples[begin : begin + 2 * batch_size]


def epochs(work_dir, max_epochs=3, **options):
    options.setdefault('param_scheduler', [dict(type='CosineAnnealingLR', by_epoch=True, T_max=max_epochs)])
    loader = dict(
        num_workers=0, dataset=dict(type='Numbers'), sampler=dict(type='DefaultSampler', shuffle=True)
    )
    loader = dict(loader, batch_size=options.pop('batch_size', 4))
    train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=max_epochs)
    checkpoint = dict(by_epoch=True)
    default = dict(train_dataloader=loader, train_cfg=train_cfg)
    return make(
        work_dir,
        **{**default, **options},
        default_hooks=dict(checkpoint=dict(type='CheckpointHook', **checkpoint)),
    )


def test_more_epochs_have_the_new_schedule(tmp_path):
    epochs(tmp_path / 'run', 2).train()
    new = epochs(tmp_path / 'new', 4)
    new.train()
    runner = epochs(tmp_path / 'run', 4, resume=True)
    runner.train()
    assert rates(runner) == rates(new)


def test_epochs_of_another_length_are_refused(tmp_path):
    epochs(tmp_path, 2).train()
    with pytest.raises(
        CheckpointError, match='epochs have another length than before .batch_size 4 -> 3, epoch'
    ):
        epochs(tmp_path, 4, resume=True, batch_size=3).train()


def test_other_images_are_told_of(tmp_path, log_messages):
    make(tmp_path).train()
    runner = make(tmp_path, max_iters=6, resume=True, length=20)
    runner.train()
    (log,) = [path.read_text() for path in tmp_path.glob('*/*.log') if 'resumed epoch' in path.read_text()]
    assert 'goes on with other data: images 12 -> 20' in log


@pytest.mark.parametrize(
    'changes, message',
    [
        (dict(max_iters=2), '4 iterations have been done, train_cfg asks for 2'),
        (dict(randomness=dict(seed=5)), 'was trained with the seed 3, not 5'),
        (
            dict(train_cfg=dict(type='EpochBasedTrainLoop', max_epochs=9)),
            'train_cfg has .*EpochBased.*, and the run that was saved .*IterBased',
        ),
        (
            dict(optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1))),
            'the optimizer is SGD, and .* of AdamW',
        ),
        (
            dict(model=nn.ModuleDict(dict(other=nn.Linear(1, 1)))),
            'the parameters of its optimizer have other names or another order',
        ),
    ],
)
def test_a_change_that_does_not_fit_what_was_saved_is_refused(changes, message, tmp_path):
    make(tmp_path).train()
    if 'model' in changes:
        line = MODELS.build(dict(type='Line'))
        line.other = line.layer
        del line.layer
        changes = dict(model=line)
    with pytest.raises(CheckpointError, match=message):
        go_on(tmp_path, **changes)


def test_a_learning_rate_that_is_scaled_by_the_batch_follows_it(tmp_path):
    scaled = dict(auto_scale_lr=dict(enable=True, base_batch_size=2), param_scheduler=None)
    make(tmp_path, batch_size=2, **scaled).train()
    assert rates(go_on(tmp_path, max_iters=6, batch_size=4, **scaled)) == [0.2]


def test_a_new_schedule_by_metrics_that_are_gone_is_refused(tmp_path):
    epochs(tmp_path, 2).train()
    schedule = [dict(type='ReduceOnPlateauLR', monitor='score')]
    with pytest.raises(CheckpointError, match='ReduceOnPlateauLR depends on metrics'):
        epochs(tmp_path, 4, resume=True, param_scheduler=schedule).train()
