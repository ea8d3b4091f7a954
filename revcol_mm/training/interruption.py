"""Runs that a signal ends: the iteration is finished, everything saved, and nothing is lost or done twice."""

import os
import signal
from functools import cache
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from multiprocessing.util import Finalize
from pathlib import Path
from threading import Thread
from typing import Any

import torch
from mmengine.dist import (
    all_reduce,
    barrier,
    broadcast_object_list,
    get_rank,
    get_world_size,
    is_main_process,
)
from mmengine.hooks import EMAHook, Hook
from mmengine.runner import BaseLoop, EpochBasedTrainLoop, IterBasedTrainLoop, Runner

from revcol_mm.checkpoints.run_files import record_last
from revcol_mm.checkpoints.whole_files import replacing

from .resumable_data import seed_everything

VALIDATED = 'last_validation'  # record of the iteration of the last validation that came to its end
INTERRUPTED = 75  # exit status of a run that has saved itself after a signal; EX_TEMPFAIL, where os has it
SIGNALS = (signal.SIGTERM, signal.SIGINT)


@cache
def exit_notice_of(pid: int) -> Connection:
    """What this process's workers see as it begins to exit: there is something to read, which nobody does.

    Args:
        pid: This process, for one that was forked inherits the notice of another.
    """
    notice, sender = Pipe(duplex=False)
    Finalize(None, sender.send, [None], exitpriority=0)
    return notice


def shield_worker(worker_id: int, exit_notice: Connection) -> None:
    """Let a worker that loads data outlive SIGTERM and SIGINT, which the whole group of processes may get.

    Its parent, which has an iteration to finish, ends it: as any worker when the data are no longer needed,
    or as it exits, whatever the worker is at. (Then multiprocessing would send SIGTERM and wait without end.)

    Args:
        worker_id: Number of the worker; it is not used.
        exit_notice: :func:`exit_notice_of` of the parent.
    """
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    Thread(target=_exit_with_parent, args=(exit_notice,), daemon=True).start()


def _exit_with_parent(exit_notice: Connection) -> None:
    exit_notice.poll(None)
    os._exit(0)


class SeedHook(Hook):
    """Seeds every iteration by its number, before anything is drawn in it."""

    priority = 'VERY_HIGH'

    def before_train_iter(self, runner: Runner, *_: Any, **__: Any) -> None:
        seed_everything(runner.seed, get_rank(), runner.iter)


class ResumeValidationHook(Hook):
    """Makes up for a validation that was due where a resumed run was saved, and did not come to its end."""

    priority = 'LOWEST'

    def before_train(self, runner: Runner) -> None:
        if runner.val_loop is not None and runner.iter and _is_due(runner.train_loop):
            record = Path(runner.work_dir, VALIDATED)
            done = [record.is_file() and record.read_text() == str(runner.iter)]
            broadcast_object_list(done)  # the main process writes it
            if not done[0]:
                runner.logger.info(f'the validation after iteration {runner.iter} did not come to its end')
                runner.val_loop.run()

    def after_val_epoch(self, runner: Runner, *_: Any, **__: Any) -> None:
        if is_main_process() and runner.iter:
            with replacing(Path(runner.work_dir, VALIDATED)) as file:
                file.unfinished.write_text(str(runner.iter))


def _is_due(loop: BaseLoop) -> bool:
    """Whether MMEngine's training loops would validate after as many iterations as there have been."""
    if isinstance(loop, IterBasedTrainLoop):
        done, end = loop.iter, loop.max_iters
    elif isinstance(loop, EpochBasedTrainLoop) and loop.iter == loop.epoch * len(loop.dataloader):
        done, end = loop.epoch, loop.max_epochs
    else:
        return False
    loop._decide_current_val_interval()
    return done >= loop.val_begin and (done % loop.val_interval == 0 or done == end)


class InterruptionHook(Hook):
    """Saves and ends the run after a signal."""

    priority = 'LOWEST'  # after CheckpointHook

    def __init__(self) -> None:
        self.received = 0
        self.handlers = {}

    def receive(self, number: int, frame: Any) -> None:
        self.received = number
        for number in SIGNALS:
            signal.signal(number, self.handlers[number])  # the next one ends the run at once

    def before_train(self, runner: Runner) -> None:
        self.handlers = {number: signal.signal(number, self.receive) for number in SIGNALS}

    def after_train(self, runner: Runner) -> None:
        for number, handler in self.handlers.items():
            signal.signal(number, handler)

    def after_train_iter(self, runner: Runner, *_: Any, **__: Any) -> None:
        self._end(runner, runner.iter + 1)

    def after_val_iter(self, runner: Runner, *_: Any, **__: Any) -> None:
        if get_world_size() == 1 and self.received:  # else processes may have different numbers of batches
            for hook in runner.hooks:
                if isinstance(hook, EMAHook):
                    hook.after_val_epoch(runner)  # the model has the averages' weights until then
            self._end(runner, runner.iter)

    def after_val_epoch(self, runner: Runner, *_: Any, **__: Any) -> None:
        self._end(runner, runner.iter)

    def _end(self, runner: Runner, num_iters: int) -> None:
        """Save and exit if any process has received a signal."""
        received = torch.tensor(self.received)
        if get_world_size() > 1:
            all_reduce(received, 'max')
        if not received:
            return
        name = f'iter_{num_iters}.pth'
        meta = dict(epoch=runner.epoch, iter=num_iters)
        runner.save_checkpoint(runner.work_dir, name, meta=meta, by_epoch=False)
        if is_main_process():
            record_last(runner.work_dir, Path(runner.work_dir, name))
        runner.logger.warning(
            f'{signal.Signals(received.item()).name}: saved {name} after {num_iters} iterations; go on with '
            '--resume'
        )
        barrier()  # a launcher ends all processes when the first has exited
        raise SystemExit(INTERRUPTED)
