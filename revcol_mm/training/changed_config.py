"""Resume a run under a config that differs from the one its checkpoint was saved with."""

import hashlib
import json
import warnings
from typing import Any, Sequence

from mmengine.optim import OptimWrapper, _ParamScheduler
from torch import nn

from revcol_mm.errors import CheckpointError


def training_settings(runner_cfg: dict[str, Any]) -> dict[str, str]:
    """Return, as JSON strings, the parts of a runner's config that the optimizer's state depends on."""
    parts = {part: runner_cfg.get(part) for part in ('optim_wrapper', 'param_scheduler', 'auto_scale_lr')}
    train_cfg = runner_cfg.get('train_cfg') or {}
    parts['train_cfg'] = {
        key: train_cfg[key] for key in ('type', 'by_epoch', 'max_epochs', 'max_iters') if key in train_cfg
    }

    def name(value: Any) -> str:
        """Return the name of a class or function, or that of an object's class."""
        return getattr(value, '__qualname__', type(value).__qualname__)

    return {part: json.dumps(value, sort_keys=True, default=name) for part, value in parts.items()}


def changed_settings(before: dict[str, str], now: dict[str, str]) -> list[str]:
    """Return the names of the settings that differ.

    Args:
        before: :func:`training_settings` of the run that saved the checkpoint.
        now: Those of the run that resumes.

    Raises:
        CheckpointError: If the type of the optimizer or of the training loop differs.
    """
    old, new = (_optimizer_type(settings['optim_wrapper']) for settings in (before, now))
    if old != new:
        raise CheckpointError(
            f'cannot resume: the optimizer is {new}, but the checkpoint was saved with {old}; '
            'start a new run from the weights with load_from'
        )
    loops = [json.loads(settings['train_cfg']) for settings in (before, now)]
    old, new = ({key: loop.get(key) for key in ('type', 'by_epoch')} for loop in loops)
    if old != new:
        raise CheckpointError(
            f'cannot resume: train_cfg has {new}, but the checkpoint was saved with {old}; '
            'start a new run from the weights with load_from'
        )
    return [part for part in now if before.get(part) != now[part]]


def _optimizer_type(optim_wrapper: str) -> Any:
    """Return the optimizer's type in the JSON of an ``optim_wrapper``, None for none or several."""
    content = json.loads(optim_wrapper)
    optimizer = content.get('optimizer') if isinstance(content, dict) else None
    return optimizer.get('type') if isinstance(optimizer, dict) else optimizer


def parameter_order(optim_wrapper: OptimWrapper, model: nn.Module) -> str:
    """Return a hash of the names of an optimizer's parameters, in the order that numbers its state."""
    names = {id(param): name.removeprefix('module.') for name, param in model.named_parameters()}
    groups = [[names.get(id(p), '?') for p in group['params']] for group in optim_wrapper.param_groups]
    return hashlib.sha256(json.dumps(groups).encode()).hexdigest()


def replay_schedule(
    optim_wrapper: OptimWrapper,
    options: list[dict[str, Any]],
    schedulers: list[_ParamScheduler],
    num_iters: int,
    epoch_ends: Sequence[int],
) -> None:
    """Set the options of a resumed optimizer from the new config, and step its schedulers to the iteration.

    Args:
        optim_wrapper: The optimizer with the state of the checkpoint.
        options: Options of every parameter group (learning rate, weight decay, ...) in the new config.
        schedulers: Schedulers of the new config, not stepped yet.
        num_iters: Iterations that have been done.
        epoch_ends: Iterations with which the finished epochs ended; none in an iteration-based run.

    Raises:
        CheckpointError: If a scheduler depends on metrics, which are not known any more.
    """
    for scheduler in schedulers:
        if getattr(scheduler, 'need_val_args', False):
            raise CheckpointError(
                f'cannot resume: {type(scheduler).__name__} depends on metrics of earlier validations, so it '
                'cannot be set up within a run; keep param_scheduler and optim_wrapper unchanged'
            )
    for group, new in zip(optim_wrapper.param_groups, options):
        group.update(new)
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', message='.*optimizer.step')  # not called yet, as intended
        for iteration in range(1, num_iters + 1):
            for by_epoch in (False, True) if iteration in epoch_ends else (False,):
                for scheduler in schedulers:
                    if scheduler.by_epoch == by_epoch:
                        scheduler.step()
