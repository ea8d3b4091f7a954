"""Check that lengths, intervals and learning-rate schedules of a run agree with each other."""

from typing import Any, Iterator

from mmengine.hooks import CheckpointHook
from mmengine.logging import MMLogger
from mmengine.optim.scheduler.param_scheduler import INF  # the end of a scheduler without one
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner

from revcol_mm.errors import PreflightError


def check_length(train_cfg: dict[str, Any]) -> None:
    """Check that lengths are positive. MMEngine would end at once, or never validate, without an error.

    Raises:
        PreflightError: With the key that is wrong.
    """
    for key in ('max_iters', 'max_epochs', 'val_interval'):
        value = train_cfg.get(key)
        if value is not None and (not isinstance(value, int) or value < 1):
            raise PreflightError(f'train_cfg.{key} must be an integer of at least 1, got {value!r}')


def check_schedule(runner: Runner) -> None:
    """Compare validation, checkpoints and learning-rate schedules with the length of training.

    What is unusual but may be intended is logged as a warning: no validation, no checkpoint before the end,
    learning-rate schedules that end after training, or before it at a learning rate of 0.

    Raises:
        PreflightError: If there is not a single batch, or if checkpoints or schedules count epochs while
            training counts iterations.
    """
    loop = runner._train_loop
    if len(loop.dataloader) == 0:
        raise PreflightError(
            'drop_last leaves out all training images, because they do not fill a batch of each process: '
            'reduce train_dataloader.batch_size'
        )
    if isinstance(loop, EpochBasedTrainLoop):
        lengths = dict(epoch=loop.max_epochs, iteration=loop.max_epochs * len(loop.dataloader))
        warnings = []
    elif isinstance(loop, IterBasedTrainLoop):
        lengths = dict(epoch=loop.max_iters, iteration=loop.max_iters)
        _check_units(runner, loop.max_iters)
        warnings = [*_idle_hooks(runner)]
    else:
        return  # a custom loop
    warnings += [*_missing_checkpoints(runner, lengths), *_schedules_of_other_lengths(runner, lengths)]
    if runner._val_loop is not None:
        unit = 'epoch' if isinstance(loop, EpochBasedTrainLoop) else 'iteration'
        end = _ends(unit, lengths)
        if loop.val_begin > lengths[unit]:
            warnings.append(f'there is no validation: train_cfg.val_begin is {loop.val_begin}, {end}')
        elif loop.val_interval > lengths[unit]:
            warnings.append(
                f'there is one validation, at the end: train_cfg.val_interval is {loop.val_interval}, {end}'
            )
    for warning in warnings:
        MMLogger.get_current_instance().warning(warning)


def schedulers(runner: Runner) -> Iterator[tuple[str, Any]]:
    """Yield every parameter scheduler of a run with its key in the config."""
    groups = runner.param_schedulers or []
    for name, group in groups.items() if isinstance(groups, dict) else [('', groups)]:
        for number, scheduler in enumerate(group):
            yield '.'.join(filter(None, ('param_scheduler', name, str(number)))), scheduler


def _ends(unit: str, lengths: dict[str, int]) -> str:
    return f'and training ends at {unit} {lengths[unit]}'


def _unit(scheduler: Any) -> str:
    return 'epoch' if scheduler.by_epoch else 'iteration'


def _check_units(runner: Runner, num_iters: int) -> None:
    """Refuse counting in epochs in iteration-based training, which MMEngine runs as a single epoch."""
    for hook in runner.hooks:
        if isinstance(hook, CheckpointHook) and hook.by_epoch and hook.interval > 0:
            raise PreflightError(
                f'{type(hook).__name__} counts epochs, but training counts iterations ({num_iters}), so no '
                'checkpoint would be saved before the end: set default_hooks.checkpoint.by_epoch=False, and '
                'its interval in iterations'
            )
    for key, scheduler in schedulers(runner):
        if scheduler.by_epoch and not getattr(scheduler, 'need_val_args', False):
            raise PreflightError(
                f'{key} ({type(scheduler).__name__}) counts epochs, but training counts iterations '
                f'({num_iters}), so it would never step: set by_epoch=False, and its numbers in iterations'
            )


def _idle_hooks(runner: Runner) -> Iterator[str]:
    """Warn of MMDetection's hooks that act at an epoch, in iteration-based training."""
    for hook in runner.hooks:
        if hasattr(hook, 'switch_epoch') or hasattr(hook, 'num_last_epochs'):
            yield (
                f'{type(hook).__name__} does nothing: it waits for an epoch, but iteration-based training is '
                'a single epoch'
            )


def _missing_checkpoints(runner: Runner, lengths: dict[str, int]) -> Iterator[str]:
    for hook in runner.hooks:
        if not isinstance(hook, CheckpointHook):
            continue
        unit = _unit(hook)
        if 1 <= hook.interval and max(hook.interval, hook.save_begin) <= lengths[unit]:
            continue
        reason = f'interval of {type(hook).__name__} is {hook.interval}'
        if hook.save_begin:
            reason += f', starting at save_begin={hook.save_begin}'
        if not hook.save_last:
            exception = 'except the best ' if hook.save_best else ''
            end = f'{_ends(unit, lengths)}, and save_last is False'
            yield f'no checkpoint {exception}is saved: {reason}, {end}'
        elif hook.interval > 0:
            yield f'there is one checkpoint, at the end: {reason}, {_ends(unit, lengths)}'


def _schedules_of_other_lengths(runner: Runner, lengths: dict[str, int]) -> Iterator[str]:
    of_lr = [pair for pair in schedulers(runner) if getattr(pair[1], 'param_name', '') == 'lr']
    for key, scheduler in of_lr:
        unit, end = _unit(scheduler), _last_step(scheduler)
        if end is None or end == lengths[unit]:
            continue
        where = f'{key} ({type(scheduler).__name__}) ends at {unit} {end}, training at {lengths[unit]}'
        if end > lengths[unit]:
            yield f'the learning rate does not reach the end of its schedule: {where}'
            continue
        others = [each for _, each in of_lr if each is not scheduler]
        is_last = all(each.end / lengths[_unit(each)] <= end / lengths[unit] for each in others)
        if is_last and _ends_at_zero(scheduler):
            yield f'the learning rate is 0 before training ends: {where}'


def _last_step(scheduler: Any) -> int | None:
    """Return the step at which a scheduler reaches its last value; None if it is not known."""
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
