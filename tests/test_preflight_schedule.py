"""Lengths, intervals and learning rates of a run are compared with each other before it."""

import re

import pytest
import torch
from mmengine.logging import MMLogger
from mmengine.optim import OptimWrapper
from torch import nn
from torch.utils.data import DataLoader

from revcol_mm.errors import PreflightError
from revcol_mm.preflight.schedule import check_schedule
from revcol_mm.training.runner import ResumableRunner

from .bare_runner import EPOCHS, SEGMENTOR, bare_runner, read
from .subprocesses import sample_options


@pytest.mark.parametrize(
    'key, message',
    [
        ('default_hooks.checkpoint.by_epoch', 'CheckpointHook counts epochs.*by_epoch=F'),
        ('param_scheduler.1.by_epoch', r'param_scheduler\.1 \(PolyLR\) counts epochs'),
    ],
)
def test_epochs_in_iteration_based_training_are_an_error(key, message):
    runner = bare_runner(read(SEGMENTOR, {key: True}))
    with pytest.raises(PreflightError, match=message):
        check_schedule(runner)


@pytest.mark.parametrize(
    'config, options, warning',
    [
        (
            SEGMENTOR,
            {'train_cfg.val_interval': 5000},
            'there is one validation, at the end: train_cfg.val_interval is 5000, and training ends at '
            'iteration 300',
        ),
        (
            EPOCHS,
            {'train_cfg.val_begin': 301},
            'there is no validation: train_cfg.val_begin is 301, and training ends at epoch 300',
        ),
        (
            SEGMENTOR,
            {'default_hooks.checkpoint.interval': 5000},
            'there is one checkpoint, at the end: interval of CheckpointHook is 5000, and training ends at '
            'iteration 300',
        ),
        (
            SEGMENTOR,
            {'default_hooks.checkpoint.interval': 5000, 'default_hooks.checkpoint.save_last': False},
            'no checkpoint except the best is saved: interval of CheckpointHook is 5000, and training ends '
            'at iteration 300, and save_last is False',
        ),
        (
            SEGMENTOR,
            {'param_scheduler.1.end': 160000},
            'the learning rate does not reach the end of its schedule: param_scheduler.1 (PolyLR) ends at '
            'iteration 160000, training at 300',
        ),
        (
            SEGMENTOR,
            {'param_scheduler.1.end': 200},
            'the learning rate is 0 before training ends: param_scheduler.1 (PolyLR) ends at iteration 200, '
            'training at 300',
        ),
        (
            SEGMENTOR,
            {'custom_hooks': [dict(type='mmdet.YOLOXModeSwitchHook', num_last_epochs=15)]},
            'YOLOXModeSwitchHook does nothing: it waits for an epoch, but iteration-based training is a '
            'single epoch',
        ),
    ],
)
def test_unusual_lengths_are_a_warning(config, options, warning, log_warnings):
    runner = bare_runner(read(config, options))
    del log_warnings[:]
    check_schedule(runner)
    assert log_warnings == [warning]


@pytest.mark.parametrize(
    'config, options',
    [
        (SEGMENTOR, {'param_scheduler.1.end': 200, 'param_scheduler.1.eta_min': 1e-6}),
        (EPOCHS, {'train_cfg.max_epochs': 400}),  # the schedule ends at a fraction of the rate
    ],
)
def test_schedules_that_end_early_above_0_pass(config, options, log_warnings):
    runner = bare_runner(read(config, options))
    del log_warnings[:]
    check_schedule(runner)
    assert log_warnings == []


def test_training_without_a_batch_is_an_error():
    runner = bare_runner(read(EPOCHS))
    runner._train_loop.dataloader = DataLoader(range(100), 128, drop_last=True)
    with pytest.raises(PreflightError, match='do not fill a batch .*reduce train_dataloader.batch_size'):
        check_schedule(runner)


@pytest.mark.parametrize('counts, world_size, scale', [(1, 1, 0.5), (8, 1, 4.0), (8, 2, 8.0)])
def test_the_learning_rate_is_scaled_by_the_images_of_a_step(counts, world_size, scale):
    runner = object.__new__(ResumableRunner)
    runner.logger, runner._world_size = MMLogger.get_current_instance(), world_size
    runner._train_dataloader, runner.param_schedulers = dict(batch_size=8), None
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    wrapper = OptimWrapper(optimizer, accumulative_counts=counts)
    runner.scale_lr(wrapper, dict(enable=False, base_batch_size=16))
    assert optimizer.param_groups[0]['lr'] == 1.0
    runner.scale_lr(wrapper, dict(enable=True, base_batch_size=16))
    assert optimizer.param_groups[0]['lr'] == scale
    with pytest.raises(PreflightError, match='base_batch_size must be a number of images, got None'):
        runner.scale_lr(wrapper, dict(enable=True))


@pytest.mark.parametrize(
    'option, message',
    [
        ('val_evaluator.iou_metrics=[mDice]', "save_best of CheckpointHook is 'mIoU'"),
        ('val_evaluator.type=NoMetric', 'cannot build an evaluator: .*NoMetric is not in'),
        ('param_scheduler.0.end=0', 'cannot build the schedule: .*end should be larger than begin'),
        ('train_dataloader.batch_size=1', 'batch_size is 1'),
        ('model.decode_head.loss_decode.class_weight=[1,1]', 'class_weight of the model has 2 numbers'),
        ('model.decode_head.in_channels=[8,8,8,8]', r'decode_head\.in_channels is \[8, 8, 8, 8\], but'),
        ('model.decode_head.num_classes=7', 'decode_head .*num_classes=7, .*has 11 classes'),
    ],
)
def test_training_ends_with_one_line_before_it_begins(option, message, sample_data, tmp_path, call_tool):
    arguments = '--work-dir', tmp_path / 'run', *sample_options(sample_data, 'ade20k', option)
    _, error = call_tool('tools/train.py', f'configs/{SEGMENTOR}', *arguments)
    assert re.match(f'error: .*{message}', error) and '\n' not in error
    assert not list((tmp_path / 'run').glob('*.pth'))
