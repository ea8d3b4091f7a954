"""Lengths, intervals and learning rates of a run that contradict each other."""

import logging
from typing import Any, Iterator

from mmengine.hooks import CheckpointHook
from mmengine.logging import print_log
from mmengine.optim.scheduler.param_scheduler import INF  # the end of a schedule that has none
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner

from revcol_mm.errors import PreflightError


def check_length(train_cfg: dict[str, Any]) -> None:
    """Check that there is an iteration to train; MMEngine would end without a word, or validate never.

    Raises:
        PreflightError: With the key that is wrong.
    """
    for key in ('max_iters', 'max_epochs', 'val_interval'):
        value = train_cfg.get(key)
        if value is not None and (not isinstance(value, int) or value < 1):
            raise PreflightError(f'train_cfg.{key} takes a whole number from 1 on, got {value!r}')


def check_schedule(runner: Runner) -> None:
    """Compare validation, checkpoints and learning rates with the length of a run.

    What is odd but may be wanted is a warning in the log: no validation, no checkpoint before the end,
    schedules that end after training or at a learning rate of 0 before it.

    Raises:
        PreflightError: If there is not one batch, or checkpoints or the learning rate count in epochs, of
            which the run has none.
    """
    loop = runner._train_loop
    if len(loop.dataloader) == 0:
        raise PreflightError(
            'drop_last leaves out all training images, which do not fill a batch of each process: set '
            'train_dataloader.batch_size to a smaller number'
        )
    if isinstance(loop, EpochBasedTrainLoop):
        unit, length, num_iters = 'epoch', loop.max_epochs, loop.max_epochs * len(loop.dataloader)
    elif isinstance(loop, IterBasedTrainLoop):
        unit, length, num_iters = 'iteration', loop.max_iters, loop.max_iters
        _check_units(runner, num_iters)
    else:
        return  # a loop of the user's own
    lengths = {'epoch': length, 'iteration': num_iters}
    warnings = [*_no_checkpoints(runner, lengths), *_schedules_of_other_lengths(runner, lengths)]
    for hook in runner.hooks if unit == 'iteration' else ():
        if hasattr(hook, 'switch_epoch') or hasattr(hook, 'num_last_epochs'):  # MMDetection's
            warnings.append(
                f'{type(hook).__name__} does nothing: it waits for an epoch, and a run by iterations has one'
            )
    if runner._val_loop is not None:
        if loop.val_begin > length:
            warnings.append(
                f'there is no validation: train_cfg.val_begin is {loop.val_begin}, {_ends(unit, length)}'
            )
        elif loop.val_interval > length:
            warnings.append(
                f'there is one validation, at the end: train_cfg.val_interval is {loop.val_interval}, '
                f'{_ends(unit, length)}'
            )
    for warning in warnings:
        print_log(warning, 'current', level=logging.WARNING)


def _ends(unit: str, length: int) -> str:
    return f'and training ends at {unit} {length}'


def _check_units(runner: Runner, num_iters: int) -> None:
    """Refuse what happens at the ends of epochs in a run by iterations, which MMEngine calls one epoch."""
    for hook in runner.hooks:
        if isinstance(hook, CheckpointHook) and hook.by_epoch and hook.interval > 0:
            raise PreflightError(
                f'{type(hook).__name__} counts in epochs, but training in iterations, {num_iters}: no '
                'checkpoint would be written before the end; set default_hooks.checkpoint.by_epoch=False and '
                'its interval in iterations'
            )
    for key, scheduler in _schedulers(runner):
        if scheduler.by_epoch and not getattr(scheduler, 'need_val_args', False):
            raise PreflightError(
                f'{key} ({type(scheduler).__name__}) counts in epochs, but training in iterations, '
                f'{num_iters}: it would never step; set by_epoch=False, and its numbers in iterations'
            )


def _no_checkpoints(runner: Runner, lengths: dict[str, int]) -> Iterator[str]:
    for hook in runner.hooks:
        if not isinstance(hook, CheckpointHook):
            continue
        unit = 'epoch' if hook.by_epoch else 'iteration'
        length = lengths[unit]
        never = hook.interval < 1 or max(hook.interval, hook.save_begin) > length
        reason = f'interval of {type(hook).__name__} is {hook.interval}'
        if hook.save_begin:
            reason += f' from save_begin={hook.save_begin} on'
        if never and not hook.save_last:
            what = 'but the best ' if hook.save_best else ''
            yield f'no checkpoint {what}is saved: {reason}, {_ends(unit, length)}, and save_last is False'
        elif never and hook.interval > 0:
            yield f'there is one checkpoint, at the end: {reason}, {_ends(unit, length)}'


def _schedulers(runner: Runner) -> Iterator[tuple[str, Any]]:
    """Every scheduler with its key in the config."""
    groups = runner.param_schedulers or []
    for name, group in groups.items() if isinstance(groups, dict) else [('', groups)]:
        for number, scheduler in enumerate(group):
            yield '.'.join(filter(None, ('param_scheduler', name, str(number)))), scheduler


def _schedules_of_other_lengths(runner: Runner, lengths: dict[str, int]) -> Iterator[str]:
    schedulers = [pair for pair in _schedulers(runner) if getattr(pair[1], 'param_name', '') == 'lr']
    for key, scheduler in schedulers:
        unit, end = 'epoch' if scheduler.by_epoch else 'iteration', _end(scheduler)
        if end is None or end == lengths[unit]:
            continue
        where = f'{key} ({type(scheduler).__name__}) ends at {unit} {end}, training at {lengths[unit]}'
        if end > lengths[unit]:
            yield f'the learning rate does not get to the end of its schedule: {where}'
            continue
        share = end / lengths[unit]
        others = [each for _, each in schedulers if each is not scheduler]
        if _ends_at_zero(scheduler) and all(
            each.end / lengths['epoch' if each.by_epoch else 'iteration'] <= share for each in others
        ):
            yield f'the learning rate is 0 from then on: {where}'


def _end(scheduler: Any) -> int | None:
    """Where a scheduler that goes on all the time comes to its last value; None if it has no such place."""
    name = type(scheduler).__name__
    if not name.startswith(('PolyLR', 'CosineAnnealingLR', 'LinearLR')):
        return None
    end = scheduler.end
    if name.startswith('Cosine'):
        end = min(end, scheduler.begin + scheduler.T_max)
    return end if end < INF else None


def _ends_at_zero(scheduler: Any) -> bool:
    if type(scheduler).__name__.startswith('LinearLR'):
        return scheduler.end_factor == 0
    return scheduler.eta_min == 0 and not getattr(scheduler, 'eta_min_ratio', None)
