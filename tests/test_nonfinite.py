"""NonFiniteHook stops a run, or skips iterations, whose loss or gradient is infinite or NaN."""

import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import DataLoader, Dataset

from revcol_mm import RevCol
from revcol_mm.checkpoints.reading import read_checkpoint
from revcol_mm.errors import PreflightError
from revcol_mm.training import nonfinite
from revcol_mm.training.column_statistics import ColumnStatisticsHook
from revcol_mm.training.nonfinite import NonFiniteError, NonFiniteHook
from revcol_mm.training.runner import ResumableRunner

from .checkpoints import assert_same_weights


class Images(Dataset):
    """One image for each value, filled with it."""

    def __init__(self, values):
        self.values = values

    def __len__(self):
        return len(self.values)

    def __getitem__(self, index):
        sample = SimpleNamespace(img_path=f'images/{index}.jpg')
        return dict(inputs=torch.full((3, 32, 32), self.values[index]), data_samples=sample)


def collate(samples):
    inputs = torch.stack([sample['inputs'] for sample in samples])
    return dict(inputs=inputs, data_samples=[sample['data_samples'] for sample in samples])


class InfiniteGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad * float('inf')


class Overflow(nn.Module):
    def forward(self, x, image):
        return x / (image.amax() <= 100)


class Model(BaseModel):
    """An image above 100 makes the loss infinite, one below 0 the gradient."""

    def __init__(self):
        super().__init__()
        arch = dict(channels=(8, 16), layers=(1, 1), num_columns=2)
        self.backbone = RevCol(arch, drop_path_rate=0.5, out_indices=(1,))
        self.overflow = Overflow()
        self.norm = nn.BatchNorm2d(16)

    def forward(self, inputs, data_samples, mode='loss'):
        output = self.norm(self.overflow(self.backbone(inputs)[0], inputs))
        if (inputs < 0).any():
            output = InfiniteGradient.apply(output)
        return dict(loss=output.square().mean())


GOOD, BAD_LOSS, BAD_GRADIENT = 1.0, 200.0, -1.0


def runner(values, work_dir, max_skips=0, runner_type=Runner, model=None, seed=0, **options):
    torch.manual_seed(0)
    return runner_type(
        model=model or Model(),
        work_dir=str(work_dir),
        train_dataloader=DataLoader(Images(values), 1, collate_fn=collate),
        train_cfg=dict(type='IterBasedTrainLoop', max_iters=len(values), val_interval=100),
        optim_wrapper=dict(optimizer=dict(type='AdamW', lr=1e-2), **options),
        default_hooks=dict(logger=dict(type='LoggerHook', interval=100)),
        custom_hooks=[dict(type='NonFiniteHook', max_skips=max_skips)],
        experiment_name=f'{work_dir.parent.name}-{work_dir.name}',
        randomness=dict(seed=seed),
    )


def saved_weights(path):
    return read_checkpoint(path)['state_dict']


def test_error_names_iteration_module_and_images_and_saves_previous_weights(tmp_path):
    with pytest.raises(NonFiniteError) as error:
        runner([GOOD, 2.0, BAD_LOSS, GOOD], tmp_path / 'stopped').train()
    message = str(error.value)
    assert 'the loss of iteration 3 is not finite' in message
    assert 'such an output is overflow (Overflow); images: images/2.jpg.' in message
    before = runner([GOOD, 2.0], tmp_path / 'before').train().state_dict()
    checkpoint = tmp_path / 'stopped/nonfinite_iter_3.pth'
    assert_same_weights(saved_weights(checkpoint), before)
    assert read_checkpoint(checkpoint)['meta']['iter'] == 2


class TwoParameters(BaseModel):
    """The gradient of the second one is infinite."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(1, 1), nn.Linear(1, 1)

    def forward(self, inputs, data_samples, mode='loss'):
        output = self.first(inputs.new_ones(1)) + InfiniteGradient.apply(self.second.weight)
        return dict(loss=output.square().sum())


def test_bad_gradient_is_named_before_clipping_spreads_it(tmp_path):
    with pytest.raises(
        NonFiniteError,
        match='gradient of iteration 1 .*outputs are finite, but the gradient of second.weight is not;',
    ):
        runner([GOOD], tmp_path, model=TwoParameters(), clip_grad=dict(max_norm=1.0)).train()
    assert all(w.isfinite().all() for w in saved_weights(tmp_path / 'nonfinite_iter_1.pth').values())


@pytest.mark.parametrize('bad', [BAD_LOSS, BAD_GRADIENT])
def test_max_skips_iterations_are_skipped(bad, tmp_path):
    model = runner([GOOD, bad, 2.0, bad], tmp_path / 'enough', max_skips=2).train()
    assert all(weight.isfinite().all() for weight in model.state_dict().values())
    (log,) = tmp_path.glob('enough/*/*.log')
    assert log.read_text().count('Skipped') == 2
    with pytest.raises(NonFiniteError, match='iteration 3'):
        runner([bad, GOOD, bad], tmp_path / 'too few', max_skips=1).train()


@pytest.mark.parametrize('bad', [BAD_LOSS, BAD_GRADIENT])
def test_skipped_iteration_changes_no_weight_and_no_buffer(bad, tmp_path):
    skipped = runner([GOOD, bad], tmp_path / 'skipped', max_skips=1).train()
    without = runner([GOOD], tmp_path / 'without').train()
    assert_same_weights(skipped.state_dict(), without.state_dict())


class CountSteps(Hook):
    """Lists the number of optimizer steps after every iteration."""

    def before_train(self, runner):
        self.steps = []

    def after_train_iter(self, runner, *_, **__):
        states = runner.optim_wrapper.optimizer.state.values()
        self.steps.append(max((int(state['step']) for state in states), default=0))


@pytest.mark.parametrize(
    'values, steps', [([BAD_LOSS, 1, 2, 3], [0, 1, 1, 2]), ([1, BAD_LOSS, 2, 3], [0, 0, 0, 1])]
)
def test_skipped_loss_counts_as_one_of_those_that_are_accumulated(values, steps, tmp_path):
    run = runner([float(value) for value in values], tmp_path, max_skips=1, accumulative_counts=2)
    counter = CountSteps()
    run.register_hook(counter)
    run.train()
    assert counter.steps == steps


def test_no_process_runs_the_batch_again_if_reconstruction_failed_in_another(tmp_path, monkeypatch):
    """The forward pass may hold collective operations, for which it would wait forever."""
    monkeypatch.setattr(nonfinite, 'all_gather_object', lambda mine: [mine, 'not exact'])
    with pytest.raises(NonFiniteError, match='is not finite: not exact;'):
        runner([BAD_LOSS], tmp_path).train()


def test_hook_does_not_change_training(tmp_path):
    watched = runner([1.0, 2.0, 3.0], tmp_path / 'watched')
    unwatched = runner([1.0, 2.0, 3.0], tmp_path / 'unwatched')
    unwatched._hooks = [hook for hook in unwatched.hooks if not isinstance(hook, NonFiniteHook)]
    for run in (watched, unwatched):
        torch.manual_seed(1)
        run.train()
    assert_same_weights(watched.model.state_dict(), unwatched.model.state_dict())


@pytest.mark.parametrize(
    'hook', [NonFiniteHook(), ColumnStatisticsHook()], ids=lambda hook: type(hook).__name__
)
def test_several_optimizers_are_refused(hook):
    model = Model()
    wrapper = OptimWrapper(torch.optim.SGD(model.parameters(), lr=1.0))
    runner = SimpleNamespace(model=model, optim_wrapper=OptimWrapperDict(generator=wrapper, critic=wrapper))
    with pytest.raises(PreflightError, match='work with one optimizer, .* has several: generator, critic'):
        hook.before_train(runner)


def test_negative_max_skips_is_refused():
    with pytest.raises(ValueError, match='must be 0 or more, got -1'):
        NonFiniteHook(max_skips=-1)


class RandomOverflow(BaseModel):
    """Overflows for one random number in two."""

    def __init__(self, random_number):
        super().__init__()
        self.random_number = random_number
        self.layer = nn.Linear(1, 1)
        self.coin = nn.Identity()

    def forward(self, inputs, data_samples, mode='loss'):
        scale = 1 / torch.tensor(self.random_number() < 0.5)
        return dict(loss=self.coin(self.layer(inputs.new_ones(1)) * scale).square().sum())


@pytest.mark.parametrize('draw', [lambda: torch.rand(()).item(), np.random.rand, random.random])
def test_batch_is_run_again_with_the_same_random_numbers(draw, tmp_path):
    """Also if ResumableRunner seeds every iteration."""
    for seed in range(4):
        model = RandomOverflow(draw)
        run = runner([GOOD] * 20, tmp_path / str(seed), runner_type=ResumableRunner, model=model, seed=seed)
        with pytest.raises(NonFiniteError, match='the first module with such an output is coin'):
            run.train()


def test_weights_are_saved_before_the_batch_is_run_again(tmp_path, monkeypatch):
    def fail(*_):
        raise MemoryError

    monkeypatch.setattr(NonFiniteHook, '_origin', fail)
    with pytest.raises(MemoryError):
        runner([GOOD, BAD_LOSS], tmp_path).train()
    saved = saved_weights(tmp_path / 'nonfinite_iter_2.pth')
    assert saved['norm.num_batches_tracked'] == 1 and saved['norm.running_mean'].isfinite().all()


@pytest.mark.parametrize('priority', ['LOWEST', 'VERY_HIGH'])
def test_guards_of_two_hooks_work_in_either_order_and_are_removed(priority, tmp_path):
    """ColumnStatisticsHook also guards the optimizer step."""
    run = runner([GOOD, GOOD, BAD_GRADIENT], tmp_path, max_skips=1)
    run.register_hook(dict(type='ColumnStatisticsHook', interval=1, priority=priority))
    weights = run.train().state_dict()
    assert all(weight.isfinite().all() for weight in weights.values())
    (log,) = tmp_path.glob('*/*.log')
    assert log.read_text().count('Skipped') == 1 and log.read_text().count('gradient_norm') >= 2
    assert not {'step', 'update_params'} & vars(run.optim_wrapper).keys()
