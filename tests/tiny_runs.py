"""Runs of ResumableRunner that fit a line to numbers and take a fraction of a second."""

import signal
import time

import pytest
import torch
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, MODELS
from torch import nn
from torch.utils.data import Dataset

from revcol_mm.training.interruption import INTERRUPTED
from revcol_mm.training.runner import ResumableRunner


@DATASETS.register_module()
class Numbers(Dataset):
    metainfo = {}

    def __init__(self, length=12):
        self.length = length

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        return dict(inputs=torch.tensor([float(index)]))


@MODELS.register_module()
class Line(BaseModel):
    """y = wx + b; ``seen`` lists the batches of the run."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(1, 1)
        self.seen = []

    def forward(self, inputs, mode='loss'):
        inputs = torch.stack(list(inputs))
        if mode == 'predict':
            return list(inputs)
        self.seen.append(inputs.flatten().tolist())
        return dict(loss=(self.layer(inputs / 12) - 1).square().mean())


class Score(BaseMetric):
    """Returns the given scores, one for each validation."""

    def __init__(self, scores):
        super().__init__()
        self.scores = iter(scores)

    def process(self, data_batch, data_samples):
        self.results.append(0)

    def compute_metrics(self, results):
        return dict(score=next(self.scores))


def make(work_dir, max_iters=4, batch_size=2, scores=(), length=12, checkpoint=(), **options):
    """Return a runner that saves every iteration and, if there are scores, validates every second one."""
    torch.manual_seed(0)
    loader = dict(num_workers=0, dataset=dict(type='Numbers', length=length))
    validation = dict(
        val_dataloader=dict(loader, batch_size=6, sampler=dict(type='DefaultSampler')),
        val_cfg=dict(type='ValLoop'),
        val_evaluator=[Score(scores)],
    )
    defaults = dict(
        model=dict(type='Line'),
        work_dir=str(work_dir),
        train_dataloader=dict(loader, batch_size=batch_size, sampler=dict(type='InfiniteSampler')),
        train_cfg=dict(type='IterBasedTrainLoop', max_iters=max_iters, val_interval=2),
        optim_wrapper=dict(optimizer=dict(type='AdamW', lr=0.1, weight_decay=0.1)),
        param_scheduler=[
            dict(type='LinearLR', start_factor=0.1, begin=0, end=1, by_epoch=False),
            dict(type='PolyLR', begin=1, end=max(max_iters, 2), by_epoch=False),
        ],
        default_hooks=dict(
            checkpoint={**dict(type='CheckpointHook', by_epoch=False, interval=1), **dict(checkpoint)}
        ),
        randomness=dict(seed=None if options.get('resume') else 3),
        experiment_name=f'{time.time_ns()}',
        **(validation if scores else {}),
    )
    return ResumableRunner(**{**defaults, **options})


def make_by_epoch(work_dir, max_epochs, batch_size=4, **options):
    """Return a runner that trains and saves by epochs of 12 numbers in random order."""
    defaults = dict(
        train_dataloader=dict(
            num_workers=0,
            batch_size=batch_size,
            dataset=dict(type='Numbers'),
            sampler=dict(type='DefaultSampler', shuffle=True),
        ),
        train_cfg=dict(type='EpochBasedTrainLoop', max_epochs=max_epochs),
        param_scheduler=[dict(type='CosineAnnealingLR', by_epoch=True, T_max=max_epochs)],
        default_hooks=dict(checkpoint=dict(type='CheckpointHook', by_epoch=True)),
    )
    return make(work_dir, **{**defaults, **options})


def resume(work_dir, **options):
    """Resume a run, train it to its end, and return the runner."""
    runner = make(work_dir, resume=True, **options)
    runner.train()
    return runner


def interrupt(runner, iteration, validating=False):
    """Train until SIGTERM arrives in an iteration, or in the validation after it."""

    class Signal(Hook):
        def before_train_iter(self, runner, *_, **__):
            if runner.iter + 1 == iteration and not validating:
                signal.raise_signal(signal.SIGTERM)

        def before_val_iter(self, runner, *_, **__):
            if runner.iter == iteration and validating:
                signal.raise_signal(signal.SIGTERM)

    runner.register_hook(Signal())
    with pytest.raises(SystemExit) as exit:
        runner.train()
    assert exit.value.code == INTERRUPTED


def newest_log(work_dir):
    return max(work_dir.glob('*/*.log'), key=lambda path: path.stat().st_mtime_ns).read_text()
