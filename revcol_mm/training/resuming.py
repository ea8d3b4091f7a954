"""From which checkpoint a run goes on, and what of its config may have changed since."""

import hashlib
import json
import warnings
from pathlib import Path
from typing import Any, Callable, NamedTuple, TypeVar

from mmengine.dist import all_gather_object, broadcast_object_list, is_main_process
from mmengine.optim import OptimWrapper, _ParamScheduler
from torch import nn

from revcol_mm.checkpoints.run_files import is_whole, newest_whole_checkpoint, read_meta, record_last
from revcol_mm.errors import CheckpointError

T = TypeVar('T')


class ResumePoint(NamedTuple):
    """Where a run goes on.

    Args:
        checkpoint: File, or folder of a sharded checkpoint.
        meta: What it tells of its run.
        damaged: Newer checkpoints, which are not used.
    """

    checkpoint: Path
    meta: dict[str, Any]
    damaged: list[Path]


def as_one(function: Callable[[], T]) -> T:
    """Call a function in the main process, and return what it does, or raise its error, in all processes."""
    outcome: list[Any] = [None, None]
    if is_main_process():
        try:
            outcome[0] = function()
        except Exception as error:  # of any kind: the others wait
            outcome[1] = error
    broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]


def find_resume_point(
    work_dir: str, load_from: str | None, checkpoint_hook: dict[str, Any], check_kind: Callable[[Path], None]
) -> ResumePoint | None:
    """Find the checkpoint that all processes go on from; the main process chooses it.

    Args:
        work_dir: Folder of the run.
        load_from: The checkpoint that is named. None: see :func:`newest_whole_checkpoint`.
        checkpoint_hook: Config of the run's CheckpointHook.
        check_kind: Raises CheckpointError for a checkpoint of a kind that the runner cannot resume from.

    Returns:
        None if no checkpoint is named and there is none.

    Raises:
        CheckpointError: If that which is named is not there or damaged, there are only damaged ones, or a
            process finds another one at its path.
    """

    def choose() -> tuple[Path | None, list[Path]]:
        if load_from is None:
            return newest_whole_checkpoint(
                work_dir, checkpoint_hook.get('out_dir'), checkpoint_hook.get('filename_tmpl')
            )
        checkpoint = Path(load_from)
        try:
            whole = is_whole(checkpoint)
        except OSError as error:
            raise CheckpointError(f'cannot resume: {checkpoint}: {error.strerror}') from error
        if not whole:
            raise CheckpointError(f'cannot resume: {checkpoint} is damaged or does not exist')
        if checkpoint.absolute().parent == Path(work_dir).absolute():
            record_last(work_dir, checkpoint.absolute())  # so that going on from here it is not the old one
        return checkpoint, []

    checkpoint, damaged = as_one(choose)
    if checkpoint is None:
        return None
    try:
        check_kind(checkpoint)
        meta, problem = read_meta(checkpoint), None
    except CheckpointError as error:
        meta, problem = {}, str(error)
    found = all_gather_object((problem, meta.get('iter'), meta.get('seed')))
    for problem, *_ in found:
        if problem:
            raise CheckpointError(problem)
    if len(set(found)) > 1:
        raise CheckpointError(f'cannot resume: processes find different checkpoints at {checkpoint}: {found}')
    return ResumePoint(checkpoint, meta, damaged)


def settings(runner_cfg: dict[str, Any]) -> dict[str, str]:
    """Those parts of a runner's config that a checkpoint's state depends on, as JSON."""
    parts = {part: runner_cfg.get(part) for part in ('optim_wrapper', 'param_scheduler', 'auto_scale_lr')}
    length = runner_cfg.get('train_cfg') or {}
    parts['train_cfg'] = {
        key: length.get(key) for key in ('type', 'by_epoch', 'max_epochs', 'max_iters') if key in length
    }

    def name(value: Any) -> str:  # of a class or a function; other objects by their type
        return getattr(value, '__qualname__', type(value).__qualname__)

    return {part: json.dumps(value, sort_keys=True, default=name) for part, value in parts.items()}


def check_kinds(before: dict[str, str], now: dict[str, str]) -> None:
    """Refuse a state of another kind than the config's: of another optimizer, or counted in other units.

    Args:
        before: :func:`settings` of the run that saved it.
        now: Those of the run that resumes.

    Raises:
        CheckpointError: If it is.
    """
    names = [_optimizer(parts['optim_wrapper']) for parts in (before, now)]
    if names[0] != names[1]:
        raise CheckpointError(
            f'cannot resume: the optimizer is {names[1]}, and the state that was saved is of {names[0]}; '
            'load_from takes the weights alone'
        )
    loops = [json.loads(parts['train_cfg']) for parts in (before, now)]
    kinds = [{key: loop.get(key) for key in ('type', 'by_epoch')} for loop in loops]
    if kinds[0] != kinds[1]:
        raise CheckpointError(
            f'cannot resume: train_cfg has {kinds[1]}, and the run that was saved {kinds[0]}; load_from '
            'takes the weights alone'
        )


def _optimizer(optim_wrapper: str) -> Any:
    """The optimizer's name in the JSON of an ``optim_wrapper``; None if it has none or several."""
    content = json.loads(optim_wrapper)
    optimizer = content.get('optimizer') if isinstance(content, dict) else None
    return optimizer.get('type') if isinstance(optimizer, dict) else optimizer


def parameter_order(optim_wrapper: OptimWrapper, model: nn.Module) -> str:
    """A hash of the names of an optimizer's parameters in their order, by which it numbers its state."""
    names = {id(param): name.removeprefix('module.') for name, param in model.named_parameters()}
    groups = [[names.get(id(p), '?') for p in group['params']] for group in optim_wrapper.param_groups]
    return hashlib.sha256(json.dumps(groups).encode()).hexdigest()


def schedule_anew(
    optim_wrapper: OptimWrapper,
    options: list[dict[str, Any]],
    schedulers: list[_ParamScheduler],
    num_iters: int,
    epoch_length: int | None,
) -> None:
    """Give an optimizer the learning rates, and all else, that a new config has for a place in a run.

    Args:
        optim_wrapper: The optimizer, with its state of before.
        options: Of every parameter group, as the new config begins.
        schedulers: Built of the new config for this optimizer, and not yet used.
        num_iters: Iterations that have been done.
        epoch_length: Iterations of an epoch. None: the run does not count in epochs.

    Raises:
        CheckpointError: If a schedule depends on metrics, which are gone.
    """
    for scheduler in schedulers:
        if getattr(scheduler, 'need_val_args', False):
            raise CheckpointError(
                f'cannot resume: {type(scheduler).__name__} depends on metrics, so it cannot be replaced '
                'within a run; leave param_scheduler and optim_wrapper as they were'
            )
    for group, new in zip(optim_wrapper.param_groups, options):
        group.update(new)
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', message='.*optimizer.step')  # which has not been called yet
        for iteration in range(1, num_iters + 1):
            ends_epoch = bool(epoch_length) and iteration % epoch_length == 0
            for by_epoch in (False, True) if ends_epoch else (False,):
                for scheduler in schedulers:
                    if scheduler.by_epoch == by_epoch:
                        scheduler.step()
