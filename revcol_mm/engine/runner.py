"""A runner whose interrupted runs go on as if they had not been interrupted."""

import copy
import os
import signal
from functools import cache, partial
from itertools import chain, repeat
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from multiprocessing.util import Finalize
from pathlib import Path
from threading import Thread
from typing import Any

import torch
from mmengine.dist import all_reduce, barrier, get_rank, get_world_size
from mmengine.evaluator import Evaluator
from mmengine.hooks import EMAHook, Hook
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.registry import LOOPS, RUNNERS
from mmengine.runner import BaseLoop, EpochBasedTrainLoop, IterBasedTrainLoop, Runner
from torch.utils.data import DataLoader

from revcol_mm.models.checkpoint import CheckpointError, unreadable_because
from revcol_mm.models.sharded_checkpoint import REST
from revcol_mm.preflight import annotation_files, building

from .checkpoint_files import is_whole, newest_whole_checkpoint
from .load_from import restrict_loading
from .resumable_data import ResumableBatchSampler, seed_everything

INTERRUPTED = 75  # exit status of a run that has saved itself after a signal; EX_TEMPFAIL, where os has it
MAX_BROKEN = 10  # different samples that training leaves out, in each process
SIGNALS = (signal.SIGTERM, signal.SIGINT)


@cache
def _exit_notice(pid: int) -> Connection:
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
        exit_notice: :func:`_exit_notice` of the parent.
    """
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    Thread(target=_exit_with_parent, args=(exit_notice,), daemon=True).start()


def _exit_with_parent(exit_notice: Connection) -> None:
    exit_notice.poll(None)
    os._exit(0)


class _Interruption(Hook):
    """Seeds every iteration by its number, and saves and ends the run after a signal."""

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

    def before_train_iter(self, runner: Runner, *_: Any, **__: Any) -> None:
        seed_everything(runner.seed, get_rank(), runner.iter)

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
        runner.logger.warning(
            f'{signal.Signals(received.item()).name}: saved {name} after {num_iters} iterations; go on with '
            '--resume'
        )
        barrier()  # a launcher ends all processes when the first has exited
        raise SystemExit(INTERRUPTED)


def _read_meta(file: str | Path) -> dict[str, Any]:
    """What a checkpoint to resume from tells of its run; read before the onedl fork might do so unsafely."""
    try:
        return torch.load(file, 'cpu', mmap=True, weights_only=True)['meta']
    except KeyError as error:
        raise CheckpointError(
            f'cannot resume: no {error} in {file}; load_from takes weights alone'
        ) from error
    except Exception as error:  # of files of others torch raises all sorts
        raise CheckpointError(f'cannot resume: {file}: {unreadable_because(error)}') from error


@RUNNERS.register_module()
class ResumableRunner(Runner):
    """MMEngine's runner, whose interrupted runs, resumed, equal one that was not interrupted.

    - A checkpoint is either whole or not there. Of those in the work dir, resuming takes the newest that is
      whole and names those that are damaged.
    - Augmentation depends on the seed and on a sample's place in the run, and what the model draws on the
      seed and the iteration: not on the number of workers, nor on where a run was interrupted.
    - Resuming goes to its place in the data without loading what comes before, also within an epoch.
    - After SIGTERM or SIGINT it finishes the iteration, saves, and exits with status 75 (EX_TEMPFAIL). On
      Windows, where SIGTERM ends a process at once, after Ctrl-C alone.
    - MMEngine reads checkpoints by :func:`restrict_loading` from then on.
    - A broken image or annotation is named in the log, and training goes on with another in its place; see
      :class:`SeededDataset`. ``train_dataloader = dict(max_broken=N, ...)``, by default 10, says how many
      each process may leave out. In validation and testing the first is an error.

    Gradients that were accumulated for a step that was not yet taken are lost: save between steps.

    Raises:
        ValueError: If ``max_keep_ckpts`` is 1: MMEngine deletes the old checkpoint before it writes the new.
        CheckpointError: If the checkpoint that is named to resume from is damaged or not there, or there is
            something in it that may not be unpickled.
        BrokenSampleError: See above.
        PreflightError: If the model, a dataloader, an evaluator or the optimizer cannot be built of its
            config.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        checkpoint_hook = (kwargs.get('default_hooks') or {}).get('checkpoint') or {}
        if checkpoint_hook.get('max_keep_ckpts') == 1:
            raise ValueError(
                'max_keep_ckpts=1 leaves no checkpoint while the next is written; keep 2 or more'
            )
        restrict_loading()
        damaged, self._resumed_meta = [], None
        if kwargs.get('resume'):
            source = kwargs.get('load_from')
            if source is None:
                source, damaged = newest_whole_checkpoint(kwargs['work_dir'])
            elif not is_whole(Path(source)):
                raise CheckpointError(f'cannot resume: {source} is damaged or does not exist')
            if source is None:
                kwargs['resume'] = False
            else:
                # The data's order is drawn, and loading begins, before MMEngine reads a checkpoint.
                self._check_kind(Path(source))
                file = Path(source, REST) if Path(source).is_dir() else source
                self._resumed_meta = _read_meta(file)
                kwargs['load_from'] = str(source)
                kwargs['randomness'] = {
                    **(kwargs.get('randomness') or {}),
                    'seed': self._resumed_meta['seed'],
                }
        with building('a run'):
            super().__init__(*args, **kwargs)
        for checkpoint in damaged:
            self.logger.warning(f'{checkpoint} is damaged and not used')
        self.register_hook(_Interruption())

    @staticmethod
    def _check_kind(source: Path) -> None:
        if source.is_dir():
            raise CheckpointError(
                f"{source} is sharded: resume with runner_type = 'FullyShardedRunner', or make a file of its "
                'weights for load_from with tools/convert_checkpoint.py'
            )

    @property
    def iter(self) -> int:
        """Iterations done. MMEngine would build the training data in testing to tell that there are none."""
        return self._train_loop.iter if isinstance(self._train_loop, BaseLoop) else 0

    @property
    def epoch(self) -> int:
        """Epochs done, likewise."""
        return self._train_loop.epoch if isinstance(self._train_loop, BaseLoop) else 0

    def set_randomness(self, *args: Any, deterministic: bool = False, **kwargs: Any) -> None:
        """As in MMEngine; of kernels that have no deterministic version on a GPU, torch warns."""
        super().set_randomness(*args, deterministic=deterministic, **kwargs)
        if deterministic and torch.cuda.is_available():
            os.environ.setdefault('CUBLAS_WORKSPACE_CONFIG', ':4096:8')  # without it cuBLAS has none, either
            torch.use_deterministic_algorithms(True, warn_only=True)

    def build_train_loop(self, loop: BaseLoop | dict) -> BaseLoop:
        """Build the training loop on data that begin where a resumed run was."""
        if isinstance(loop, dict) and isinstance(self._train_dataloader, dict):
            cfg = copy.deepcopy(self._train_dataloader)
            by_epoch = loop.get('by_epoch', False)
            if 'type' in loop:
                by_epoch = issubclass(LOOPS.get(loop['type']), EpochBasedTrainLoop)
            done = self._resumed_meta or dict(iter=0, epoch=0)
            cfg['dataset'] = dict(
                type='SeededDataset', dataset=cfg['dataset'], max_broken=cfg.pop('max_broken', MAX_BROKEN)
            )
            cfg['batch_sampler'] = dict(
                type='ResumableBatchSampler',
                batch_sampler=cfg.get('batch_sampler'),
                drop_last=cfg.pop('drop_last', False),
                seed=self.seed,
                num_iters=done['iter'],
                num_epochs=done['epoch'] if by_epoch else None,
            )
            self._train_dataloader = cfg
        return super().build_train_loop(loop)

    @staticmethod
    def build_dataloader(dataloader: DataLoader | dict, *args: Any, **kwargs: Any) -> DataLoader:
        """As in MMEngine, with workers that leave signals to the main process, and broken samples named."""
        if not isinstance(dataloader, dict):
            return dataloader
        dataset = dataloader['dataset']
        if not isinstance(dataset, dict) or dataset.get('type') != 'SeededDataset':
            dataloader = {**dataloader, 'dataset': dict(type='SeededDataset', dataset=dataset)}
        with building('a dataloader'), annotation_files() as files:
            loader = Runner.build_dataloader(dataloader, *args, **kwargs)
        loader.dataset.annotation_files = files
        if 'worker_init_fn' not in dataloader:  # set now, for MMEngine copies what is in a config
            loader.worker_init_fn = partial(shield_worker, exit_notice=_exit_notice(os.getpid()))
        return loader

    def build_evaluator(self, evaluator: Evaluator | dict | list) -> Evaluator:
        """As in MMEngine, with what is wrong in the config or its annotation file in one line."""
        with building('an evaluator'), annotation_files():
            return super().build_evaluator(evaluator)

    def build_optim_wrapper(self, optim_wrapper: OptimWrapper | dict) -> OptimWrapper | OptimWrapperDict:
        """As in MMEngine, with what is wrong in the config in one line."""
        with building('the optimizer'):
            return super().build_optim_wrapper(optim_wrapper)

    def resume(self, *args: Any, **kwargs: Any) -> None:
        """As in MMEngine, which then drops as many batches as there were iterations: none that was loaded."""
        super().resume(*args, **kwargs)
        loop = self.train_loop
        batches = loop.dataloader.batch_sampler
        if isinstance(loop, IterBasedTrainLoop) and isinstance(batches, ResumableBatchSampler):
            iterator = loop.dataloader_iterator
            iterator._epoch = batches.first_epoch
            if hasattr(iterator, 'skip_iter'):  # the onedl fork's MMEngine asks its iterator to drop them
                iterator.skip_iter = lambda num_iters: None
            else:
                loop.dataloader_iterator = chain(repeat(None, loop.iter), iterator)

    def save_checkpoint(
        self, out_dir: str, filename: str, *args: Any, backend_args: dict | None = None, **kwargs: Any
    ) -> None:
        """As in MMEngine; a local file is either whole or not there.

        Raises:
            CheckpointError: If it cannot be written, as on a full disk, with what there is to resume from.
        """
        backend_args = backend_args or dict(backend='atomic')
        try:
            super().save_checkpoint(out_dir, filename, *args, backend_args=backend_args, **kwargs)
        except OSError as error:
            newest, _ = newest_whole_checkpoint(out_dir)
            raise CheckpointError(
                f'cannot write {filename} in {out_dir}: {error.strerror}; the newest checkpoint there is '
                f'{newest}'
            ) from error
