"""Save and end a run after SIGTERM or SIGINT, once the iteration is finished."""

import signal
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import all_reduce, barrier, get_world_size, is_main_process
from mmengine.hooks import EMAHook, Hook
from mmengine.runner import Runner

from revcol_mm.checkpoints.run_files import record_last

from .checkpoint_hook import INTERRUPTIONS
from .worker_shutdown import SIGNALS

INTERRUPTED = 75  # exit status, EX_TEMPFAIL: the run was saved and can be resumed


class SignalRecorder:
    """Records the first SIGTERM or SIGINT within a context; a second one has its usual effect.

    Attributes:
        received: Number of the signal, 0 if there was none.
    """

    def __init__(self) -> None:
        self.received = 0
        self.handlers: dict[int, Any] = {}

    def __enter__(self) -> None:
        self.handlers = {number: signal.signal(number, self._receive) for number in SIGNALS}

    def __exit__(self, *_: object) -> None:
        for number, handler in self.handlers.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: Any) -> None:
        self.received = number
        self.__exit__()


class InterruptionHook(Hook):
    """Saves a checkpoint and exits with status :data:`INTERRUPTED` after SIGTERM or SIGINT.

    All processes of a distributed run end after the same iteration, if any of them has received a signal.

    Args:
        signals: What this process has received.

    Raises:
        SystemExit: After the checkpoint is written.
    """

    priority = 'LOWEST'  # after CheckpointHook

    def __init__(self, signals: SignalRecorder) -> None:
        self.signals = signals

    def after_train_iter(self, runner: Runner, *_: Any, **__: Any) -> None:
        self._save_and_exit_if_signalled(runner, runner.iter + 1)

    def after_val_iter(self, runner: Runner, *_: Any, **__: Any) -> None:
        # Processes may have different numbers of validation batches, so several wait for the end of it.
        if get_world_size() == 1 and self.signals.received:
            for hook in runner.hooks:
                if isinstance(hook, EMAHook):
                    hook.after_val_epoch(runner)  # swaps the averaged weights for those in training
            self._save_and_exit_if_signalled(runner, runner.iter)

    def after_val_epoch(self, runner: Runner, *_: Any, **__: Any) -> None:
        self._save_and_exit_if_signalled(runner, runner.iter)

    def _save_and_exit_if_signalled(self, runner: Runner, num_iters: int) -> None:
        received = torch.tensor(self.signals.received)
        if get_world_size() > 1:
            all_reduce(received, 'max')
        if not received:
            return
        name = f'iter_{num_iters}.pth'
        meta = dict(epoch=runner.epoch, iter=num_iters)
        earlier = runner.message_hub.runtime_info.get(INTERRUPTIONS, ())
        runner.message_hub.update_info(INTERRUPTIONS, [*earlier, num_iters])
        runner.save_checkpoint(runner.work_dir, name, meta=meta, by_epoch=False)
        if is_main_process():
            record_last(runner.work_dir, Path(runner.work_dir, name))
        signal_name = signal.Signals(received.item()).name
        runner.logger.warning(
            f'{signal_name}: saved {name} after {num_iters} iterations; continue with --resume'
        )
        barrier()  # torchrun ends all processes when the first one exits
        raise SystemExit(INTERRUPTED)
