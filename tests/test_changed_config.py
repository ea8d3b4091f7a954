"""A run that is resumed under a changed config follows the new config, or refuses to resume."""

from itertools import chain

import pytest
import torch
from mmengine.model import BaseModel
from mmengine.optim import OptimWrapper, OptimWrapperDict
from torch import nn
from torch.utils.data import BatchSampler

from revcol_mm.errors import CheckpointError, PreflightError
from revcol_mm.training.runner import ResumableRunner

from .checkpoints import assert_same_weights
from .tiny_runs import Line, interrupt, make, make_by_epoch, newest_log, resume


def learning_rates(runner):
    return [group['lr'] for group in runner.optim_wrapper.param_groups]


@pytest.mark.parametrize(
    'changes',
    [
        pytest.param(dict(), id='more iterations, and a schedule that ends with them'),
        pytest.param(
            dict(optim_wrapper=dict(optimizer=dict(type='AdamW', lr=0.5, weight_decay=0))), id='learning rate'
        ),
        pytest.param(
            dict(param_scheduler=[dict(type='MultiStepLR', milestones=[1, 5], by_epoch=False)]), id='schedule'
        ),
        pytest.param(dict(param_scheduler=[dict(type='PolyLR', by_epoch=False)]), id='default end'),
        pytest.param(dict(param_scheduler=None), id='no schedule'),
    ],
)
def test_learning_rate_and_weight_decay_are_those_of_the_new_config(changes, tmp_path):
    make(tmp_path / 'run', max_iters=4).train()
    new = make(tmp_path / 'new', max_iters=8, **changes)
    new.train()
    runner = resume(tmp_path / 'run', max_iters=8, **changes)
    assert learning_rates(runner) == learning_rates(new)
    (group,), (expected,) = runner.optim_wrapper.param_groups, new.optim_wrapper.param_groups
    assert group['weight_decay'] == expected['weight_decay']
    log = newest_log(tmp_path / 'run')
    assert 'resuming with a changed' in log and 'train_cfg' in log


def test_more_epochs_follow_the_new_schedule(tmp_path):
    make_by_epoch(tmp_path / 'run', 2).train()
    new = make_by_epoch(tmp_path / 'new', 4)
    new.train()
    runner = make_by_epoch(tmp_path / 'run', 4, resume=True)
    runner.train()
    assert learning_rates(runner) == learning_rates(new)


def test_interruption_before_the_end_of_an_epoch_does_not_count_it_twice(tmp_path):
    """The last iteration of the second epoch is saved before the epoch ends."""
    scheduler = dict(type='MultiStepLR', milestones=[1, 2, 3, 4], by_epoch=True, end=9)
    changed = dict(param_scheduler=[scheduler])
    new = make_by_epoch(tmp_path / 'new', 3, **changed)
    new.train()
    interrupt(make_by_epoch(tmp_path / 'run', 3), 6)
    runner = make_by_epoch(tmp_path / 'run', 3, resume=True, **changed)
    runner.train()
    assert learning_rates(runner) == learning_rates(new)


@pytest.mark.parametrize('batch_size', [4, 1, 3])
def test_with_another_batch_size_no_sample_is_left_out(batch_size, tmp_path):
    unbroken = make(tmp_path / 'unbroken', max_iters=12)
    unbroken.train()
    samples = [*chain(*unbroken.model.seen)]
    make(tmp_path / 'run', max_iters=4).train()  # 8 samples
    runner = resume(tmp_path / 'run', max_iters=4 + 2, batch_size=batch_size)
    begin = 8 // batch_size * batch_size
    assert [*chain(*runner.model.seen)] == samples[begin : begin + 2 * batch_size]


def test_other_batch_size_with_as_many_batches_in_an_epoch_skips_none(tmp_path):
    make_by_epoch(tmp_path, 2, batch_size=5).train()  # 5, 5 and 2 of 12 samples
    runner = make_by_epoch(tmp_path, 3, batch_size=4, resume=True)
    runner.train()
    assert sorted(chain(*runner.model.seen)) == [*range(12)]


def test_finite_sampler_continues_with_the_next_pass_over_the_data(tmp_path, monkeypatch):
    """Two resumptions within the second and in the third pass see the samples of an uninterrupted run."""
    monkeypatch.setattr('time.sleep', lambda seconds: None)  # MMEngine sleeps 2 seconds before each pass
    loader = dict(
        num_workers=0,
        batch_size=4,
        dataset=dict(type='Numbers'),
        sampler=dict(type='DefaultSampler', shuffle=True),
    )
    unbroken = make(tmp_path / 'unbroken', max_iters=10, train_dataloader=loader)
    unbroken.train()
    make(tmp_path / 'run', max_iters=4, train_dataloader=loader).train()
    second = resume(tmp_path / 'run', max_iters=7, train_dataloader=loader)
    third = resume(tmp_path / 'run', max_iters=10, train_dataloader=loader)
    assert second.model.seen + third.model.seen == unbroken.model.seen[4:]


def test_learning_rate_scaled_by_batch_size_follows_the_new_batch_size(tmp_path):
    scaled = dict(auto_scale_lr=dict(enable=True, base_batch_size=2), param_scheduler=None)
    make(tmp_path, batch_size=2, **scaled).train()
    assert learning_rates(resume(tmp_path, max_iters=6, batch_size=4, **scaled)) == [0.2]


def test_drop_last_beside_a_batch_sampler_is_an_error_as_in_torch(tmp_path):
    loader = dict(
        num_workers=0, batch_size=2, dataset=dict(type='Numbers'), sampler=dict(type='DefaultSampler')
    )
    batch_sampler = dict(type=BatchSampler, drop_last=True)
    runner = make(tmp_path, train_dataloader=dict(loader, batch_sampler=batch_sampler, drop_last=True))
    with pytest.raises(PreflightError, match='drop_last has no effect beside batch_sampler'):
        runner.train()


def test_another_number_of_images_is_logged(tmp_path):
    make(tmp_path).train()
    resume(tmp_path, max_iters=6, length=20)
    assert 'has changed since the checkpoint was saved: images 12 -> 20' in newest_log(tmp_path)


@pytest.mark.parametrize(
    'changes, message',
    [
        (dict(max_iters=2), '4 iterations have been done, train_cfg asks for 2'),
        (dict(randomness=dict(seed=5)), 'was trained with the seed 3, not 5'),
        (
            dict(train_cfg=dict(type='EpochBasedTrainLoop', max_epochs=9)),
            'train_cfg has .*EpochBased.*, but the checkpoint was saved with .*IterBased',
        ),
        (
            dict(optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1))),
            'the optimizer is SGD, but .* saved with AdamW',
        ),
    ],
)
def test_change_that_the_saved_state_does_not_fit_is_refused(changes, message, tmp_path):
    make(tmp_path).train()
    with pytest.raises(CheckpointError, match=message):
        resume(tmp_path, **changes)


def test_changed_parameters_are_refused_before_anything_is_loaded(tmp_path, monkeypatch):
    """Loading shards of other parameters fails without naming the cause."""
    make(tmp_path).train()
    monkeypatch.setattr(ResumableRunner, 'load_checkpoint', None, raising=False)
    renamed = Line()
    renamed.other = renamed.layer
    del renamed.layer
    message = "the names or the order of the optimizer's parameters have changed"
    with pytest.raises(CheckpointError, match=message):
        resume(tmp_path, model=renamed)


@pytest.mark.parametrize(
    'changes, message',
    [
        (dict(batch_size=3), r'the length of an epoch has changed \(batch_size 4 -> 3, epoch'),
        (
            dict(param_scheduler=[dict(type='ReduceOnPlateauLR', monitor='score')]),
            'ReduceOnPlateauLR depends on metrics',
        ),
    ],
)
def test_change_that_an_epoch_based_run_cannot_follow_is_refused(changes, message, tmp_path):
    make_by_epoch(tmp_path, 2).train()
    with pytest.raises(CheckpointError, match=message):
        make_by_epoch(tmp_path, 4, resume=True, **changes).train()


class TwoLines(BaseModel):
    """Trained by two optimizers."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(1, 1), nn.Linear(1, 1)

    def forward(self, inputs, mode='loss'): ...

    def train_step(self, data, optim_wrapper):
        inputs = torch.stack(data['inputs']) / 12
        for name in ('first', 'second'):
            loss = (getattr(self, name)(inputs) - 1).square().mean()
            optim_wrapper[name].update_params(loss)
        return dict(loss=loss)


def two_optimizers():
    torch.manual_seed(0)
    model = TwoLines()
    wrappers = {
        name: OptimWrapper(torch.optim.AdamW(getattr(model, name).parameters(), lr=0.1))
        for name in ('first', 'second')
    }
    return dict(model=model, optim_wrapper=OptimWrapperDict(**wrappers), param_scheduler=None)


def test_run_with_two_optimizers_is_resumed_unless_the_config_changes(tmp_path):
    unbroken = make(tmp_path / 'unbroken', max_iters=4, **two_optimizers()).train()
    resumed = resume(
        tmp_path / 'run',
        load_from=str(tmp_path / 'unbroken/iter_2.pth'),
        **two_optimizers(),
    )
    assert_same_weights(resumed.model.state_dict(), unbroken.state_dict())
    with pytest.raises(CheckpointError, match='several optimizers after a change of train_cfg'):
        resume(tmp_path / 'unbroken', max_iters=8, **two_optimizers())
