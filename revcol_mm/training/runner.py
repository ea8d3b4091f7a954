"""A runner whose interrupted runs go on as if they had not been interrupted."""

import copy
import os
from functools import partial
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from mmengine.evaluator import Evaluator
from mmengine.hooks import CheckpointHook, Hook
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.registry import LOOPS, RUNNERS
from mmengine.runner import BaseLoop, EpochBasedTrainLoop, IterBasedTrainLoop, Runner
from torch import nn
from torch.utils.data import DataLoader

from revcol_mm.checkpoints.run_files import checkpoint_folder, is_whole, remove_unfinished, saved_checkpoints
from revcol_mm.checkpoints.sources import is_remote
from revcol_mm.data.coco_file import annotation_files
from revcol_mm.errors import CheckpointError, PreflightError, building

from .checkpoint_hook import KeepingCheckpointHook
from .interruption import InterruptionHook, ResumeValidationHook, SeedHook, exit_notice_of, shield_worker
from .load_from import restrict_loading
from .resumable_data import ResumableBatchSampler
from .resuming import (
    ResumePoint,
    as_one,
    check_kinds,
    find_resume_point,
    parameter_order,
    schedule_anew,
    settings,
)

MAX_BROKEN = 10  # different samples that training leaves out, in each process


@RUNNERS.register_module()
class ResumableRunner(Runner):
    """MMEngine's runner, whose interrupted runs, resumed, equal one that was not interrupted.

    - A checkpoint is either whole or not there, and is deleted when its successor is written. Resuming takes
      the newest that is whole and names those that are damaged; all processes take the same.
    - Augmentation depends on the seed and on a sample's place in the run, and what the model draws on the
      seed and the iteration: not on the number of workers, nor on where a run was interrupted.
    - Resuming goes to its place in the data without loading what comes before, also within an epoch, and
      makes up for a validation that was interrupted. Under a config that has changed it does what the new
      config says (length, schedule, options of the optimizer, batch size), or refuses.
    - Two runs do not train in one work dir at the same time.
    - After SIGTERM or SIGINT it finishes the iteration, saves, and exits with status 75 (EX_TEMPFAIL). On
      Windows, where SIGTERM ends a process at once, after Ctrl-C alone.
    - MMEngine reads checkpoints by :func:`restrict_loading` from then on.
    - A broken image or annotation is named in the log, and training goes on with another in its place; see
      :class:`SeededDataset`. ``train_dataloader = dict(max_broken=N, ...)``, by default 10, says how many
      each process may leave out. In validation and testing the first is an error.

    Gradients that were accumulated for a step that was not yet taken are lost: save between steps.

    Raises:
        CheckpointError: If the checkpoint that is named to resume from is damaged or not there, if there are
            only damaged ones, if there is something in it that may not be unpickled, or it does not fit the
            config.
        BrokenSampleError: See above.
        PreflightError: If the model, a dataloader, an evaluator, the optimizer or its schedule cannot be
            built of its config, or another run trains in the work dir.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        restrict_loading()
        self._resume_point: ResumePoint | None = None
        self._wanted = (kwargs.get('resume'), kwargs.get('load_from'))
        self._checkpoint_hook = (kwargs.get('default_hooks') or {}).get('checkpoint') or {}
        self._settings = settings(kwargs)
        # MMEngine uses it after setup_env, which may put the seed of a resumed run in.
        self._randomness = kwargs['randomness'] = dict(kwargs.get('randomness') or dict(seed=None))
        with building('a run'):
            super().__init__(*args, **kwargs)
        if self._resume_point:
            self._load_from = str(self._resume_point.checkpoint)
            for checkpoint in self._resume_point.damaged:
                self.logger.warning(f'{checkpoint} is damaged and not used')
        elif self._resume:
            self._resume = False
            self.logger.warning(f'nothing to resume from in {self.work_dir}: the run begins')
        self.register_hook(SeedHook())
        self.register_hook(ResumeValidationHook())
        self.register_hook(InterruptionHook())

    def setup_env(self, env_cfg: dict) -> None:
        """Set up processes as MMEngine does, and find out together where a resumed run goes on.

        The data's order is drawn, and loading begins, before MMEngine reads a checkpoint.
        """
        super().setup_env(env_cfg)
        resume, load_from = self._wanted
        if not resume:
            return
        self._resume_point = find_resume_point(
            self.work_dir, load_from, self._checkpoint_hook, self._check_kind
        )
        if self._resume_point:
            seed, wanted = self._resume_point.meta['seed'], self._randomness.get('seed')
            if wanted not in (None, seed):
                raise CheckpointError(
                    f'cannot resume: {self._resume_point.checkpoint} was trained with the seed {seed}, '
                    f'not {wanted}'
                )
            self._randomness['seed'] = seed

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
            done = self._resume_point.meta if self._resume_point else dict(iter=0, epoch=0)
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
                data=done.get('data'),
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
        vars(loader.dataset)['annotation_files'] = files
        if 'worker_init_fn' not in dataloader:  # set now, for MMEngine copies what is in a config
            loader.worker_init_fn = partial(shield_worker, exit_notice=exit_notice_of(os.getpid()))
        return loader

    def build_optim_wrapper(self, optim_wrapper: OptimWrapper | dict) -> OptimWrapper | OptimWrapperDict:
        """As in MMEngine, with what is wrong in the config in one line."""
        with building('the optimizer'):
            return super().build_optim_wrapper(optim_wrapper)

    def build_param_scheduler(self, scheduler: Any) -> Any:
        """As in MMEngine, likewise."""
        with building('the schedule'):
            return super().build_param_scheduler(scheduler)

    def build_evaluator(self, evaluator: Any) -> Evaluator:
        """As in MMEngine, likewise, its annotation file included."""
        with building('an evaluator'), annotation_files():
            return super().build_evaluator(evaluator)

    def scale_lr(self, optim_wrapper: OptimWrapper, auto_scale_lr: dict | None = None) -> None:
        """Scale learning rates by the number of images in a step of the optimizer.

        MMEngine counts those of an iteration, of which a step has ``accumulative_counts``.

        Raises:
            PreflightError: If ``base_batch_size`` is not a number of images.
        """
        if not auto_scale_lr or not auto_scale_lr.get('enable', False):
            return
        base = auto_scale_lr.get('base_batch_size')
        if not isinstance(base, (int, float)) or base <= 0:
            raise PreflightError(f'auto_scale_lr.base_batch_size takes a number of images, got {base!r}')
        wrappers = optim_wrapper.values() if isinstance(optim_wrapper, OptimWrapperDict) else [optim_wrapper]
        for wrapper in wrappers:
            counts = wrapper._accumulative_counts
            if counts > 1:
                self.logger.info(f'{base} images in {counts} iterations are {base / counts} in each')
            super().scale_lr(wrapper, {**auto_scale_lr, 'base_batch_size': base / counts})

    def register_hook(self, hook: Hook | dict, *args: Any, **kwargs: Any) -> None:
        """Register a hook as MMEngine does, but a KeepingCheckpointHook for a CheckpointHook."""
        if isinstance(hook, dict) and hook.get('type') in (
            CheckpointHook,
            'CheckpointHook',
            'mmengine.CheckpointHook',
        ):
            hook = {**hook, 'type': KeepingCheckpointHook}
        super().register_hook(hook, *args, **kwargs)

    def train(self) -> nn.Module:
        """Train, in a work dir that no other run trains in at the same time.

        Raises:
            PreflightError: If one does.
        """
        lock = FileLock(Path(self.work_dir, '.lock'))
        as_one(lambda: self._take(lock))
        try:
            return super().train()
        finally:
            lock.release()

    def _take(self, lock: FileLock) -> None:
        try:
            lock.acquire(timeout=0)
        except NotImplementedError:
            self.logger.warning(
                f'the file system of {self.work_dir} has no locks: let no other run train there'
            )
        except Timeout as error:
            raise PreflightError(
                f'another run trains in {self.work_dir}; wait for its end or give another --work-dir'
            ) from error
        remove_unfinished(self.work_dir)
        out_dir, template = (self._checkpoint_hook.get(key) for key in ('out_dir', 'filename_tmpl'))
        if out_dir and not is_remote(out_dir):
            remove_unfinished(checkpoint_folder(self.work_dir, out_dir))
        saved = [] if self._resume else saved_checkpoints(self.work_dir, out_dir, template)
        if saved:
            self.logger.warning(
                f'{self.work_dir} has checkpoints of an earlier run, such as {saved[0].name}, which this run '
                'will replace one by one; --resume goes on with that run, another --work-dir keeps it'
            )

    def load_checkpoint(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Load a checkpoint as MMEngine does; to resume from, one whose optimizer fits."""
        checkpoint = super().load_checkpoint(*args, **kwargs)
        if self._resume:
            self._check_optimizer(checkpoint)
        return checkpoint

    def _check_optimizer(self, checkpoint: dict[str, Any]) -> None:
        """Refuse an optimizer's state that belongs to other parameters than those of the same number."""
        before = checkpoint['meta'].get('parameter_order')
        if before is None or not isinstance(self.optim_wrapper, OptimWrapper):
            return
        if before != parameter_order(self.optim_wrapper, self.model):
            raise CheckpointError(
                f'cannot resume from {self._load_from}: the parameters of its optimizer have other names or '
                'another order, for the model or optim_wrapper has changed; load_from takes the weights alone'
            )

    def resume(self, *args: Any, **kwargs: Any) -> None:
        """Resume as MMEngine does, with the learning rates of the present config.

        MMEngine then drops as many batches as there were iterations: none that was loaded.

        Raises:
            CheckpointError: If the config has changed in a way that the checkpoint's state does not fit.
        """
        meta = self._resume_point.meta if self._resume_point else {}
        before = meta.get('settings', self._settings)
        changed = [part for part in self._settings if before.get(part) != self._settings[part]]
        check_kinds(before, self._settings)
        batches = self.train_loop.dataloader.batch_sampler
        if (self.auto_scale_lr or {}).get('enable') and 'data' in meta:
            if meta['data']['batch_size'] != batches.extent['batch_size']:
                changed.append('batch size')
        if changed and not isinstance(self.optim_wrapper, OptimWrapper):
            raise CheckpointError(
                f'cannot resume several optimizers under another {", ".join(changed)} than before'
            )
        if changed:
            options = [
                {name: copy.copy(value) for name, value in group.items() if name != 'params'}
                for group in self.optim_wrapper.param_groups
            ]
            kwargs['resume_param_scheduler'] = False
        super().resume(*args, **kwargs)
        loop = self.train_loop
        if loop.iter > loop.max_iters:
            raise CheckpointError(
                f'cannot resume: {loop.iter} iterations have been done, train_cfg asks for {loop.max_iters}'
            )
        if changed:
            self.logger.warning(f'the run goes on with another {", ".join(changed)} than it began with')
            by_epoch = isinstance(loop, EpochBasedTrainLoop)
            schedule_anew(
                self.optim_wrapper,
                options,
                self.param_schedulers or [],
                loop.iter,
                len(loop.dataloader) if by_epoch else None,
            )
        if isinstance(loop, IterBasedTrainLoop) and isinstance(batches, ResumableBatchSampler):
            iterator = loop.dataloader_iterator
            iterator._epoch = batches.first_epoch
            if hasattr(iterator, 'skip_iter'):  # the onedl fork's MMEngine asks its iterator to drop them
                iterator.skip_iter = lambda num_iters: None
            else:
                loop.dataloader_iterator = chain(repeat(None, loop.iter), iterator)

    def save_checkpoint(
        self,
        out_dir: str,
        filename: str,
        *args: Any,
        meta: dict | None = None,
        backend_args: dict | None = None,
        **kwargs: Any,
    ) -> None:
        """Save a checkpoint as MMEngine does; a local file is either whole or not there.

        Raises:
            CheckpointError: If it cannot be written, as on a full disk, with what there is to resume from.
        """
        meta = dict(meta or {}, settings=self._settings)
        if isinstance(self.optim_wrapper, OptimWrapper):
            meta['parameter_order'] = parameter_order(self.optim_wrapper, self.model)
        batches = self.train_dataloader.batch_sampler
        if isinstance(batches, ResumableBatchSampler):
            meta['data'] = batches.extent
        if is_remote(out_dir):
            super().save_checkpoint(out_dir, filename, *args, meta=meta, backend_args=backend_args, **kwargs)
            return
        backend_args = backend_args or dict(backend='atomic')
        try:
            super().save_checkpoint(out_dir, filename, *args, meta=meta, backend_args=backend_args, **kwargs)
        except OSError as error:
            whole = [path for path in saved_checkpoints(out_dir) if is_whole(path)]
            raise CheckpointError(
                f'cannot write {filename} in {out_dir}: {error.strerror}; the newest checkpoint there is '
                f'{whole[0] if whole else None}'
            ) from error
