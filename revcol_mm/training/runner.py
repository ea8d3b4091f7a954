"""A runner whose interrupted runs, once resumed, give the same result as an uninterrupted run."""

import copy
import os
from functools import partial
from pathlib import Path
from typing import Any

import torch
from mmengine.evaluator import Evaluator
from mmengine.hooks import CheckpointHook, Hook
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.registry import LOOPS, RUNNERS
from mmengine.runner import BaseLoop, EpochBasedTrainLoop, IterBasedTrainLoop, Runner
from torch import nn
from torch.utils.data import DataLoader

from revcol_mm.checkpoints.run_files import (
    checkpoint_folder,
    is_complete,
    remove_unfinished,
    saved_checkpoints,
)
from revcol_mm.checkpoints.sources import is_remote
from revcol_mm.data.annotation_files import annotation_files
from revcol_mm.errors import CheckpointError, PreflightError, building

from . import seeded_dataset  # noqa: F401  registers SeededDataset, which configs of data loaders get
from .changed_config import changed_settings, parameter_order, replay_schedule, training_settings
from .checkpoint_hook import KeepingCheckpointHook
from .interruption import InterruptionHook, SignalRecorder
from .load_from import restrict_loading
from .resumable_batches import ResumableBatchSampler, ResumedBatches
from .resume_point import ResumePoint, call_in_main_process, find_resume_point
from .resume_validation import ResumeValidationHook
from .seeding import SeedHook
from .work_dir_lock import locked
from .worker_shutdown import exit_notice_of, shield_worker, stopping_workers

MMENGINE_HOOKS = ('runtime_info', 'timer', 'sampler_seed', 'logger', 'param_scheduler', 'checkpoint')
MAX_BROKEN = 10  # default number of distinct broken samples that each process may replace in training


@RUNNERS.register_module()
class ResumableRunner(Runner):
    """MMEngine's runner, with exact resuming and protection of checkpoints.

    - A checkpoint file is either complete or does not exist, and an old one is deleted after the new one is
      written. Resuming uses the newest undamaged checkpoint, the same in all processes, and names damaged
      ones in the log.
    - Augmentation is seeded by a sample's position in the run, the model's random numbers by the iteration.
      Results do not depend on the number of workers or on where a run was interrupted.
    - A resumed run continues at its position in the data, also within an epoch, without loading earlier
      batches, and runs a validation that was interrupted. If the config has changed, the run follows the new
      length, schedule, optimizer options and batch size, or refuses to resume.
    - ``resume='auto'`` continues the run in the work dir, and starts a new one from ``load_from`` if there is
      none. With ``resume=True``, as in MMEngine, ``load_from``, if set, is the checkpoint to resume from.
    - Only one run trains in a work dir at a time.
    - After SIGTERM or SIGINT the run finishes the iteration, saves, and exits with status 75 (EX_TEMPFAIL).
      On Windows this holds for Ctrl-C only, since SIGTERM ends a process at once.
    - MMEngine reads all checkpoints safely from then on, see :func:`restrict_loading`.
    - A broken image or annotation is named in the log and replaced, see :class:`SeededDataset`.
      ``train_dataloader = dict(max_broken=N, ...)``, by default 10, limits the number of replaced samples in
      each process. In validation and testing a broken sample is an error.

    Gradients accumulated for a step that was not taken yet are not saved: let the checkpoint interval be a
    multiple of ``accumulative_counts``.

    Raises:
        CheckpointError: If the checkpoint to resume from is missing or damaged, needs unpickling of unsafe
            objects or does not fit the config, or if all checkpoints of the run are damaged.
        BrokenSampleError: If there are more broken samples than ``max_broken``.
        PreflightError: If the model, a data loader, an evaluator, the optimizer or the schedule cannot be
            built from the config, or another run trains in the work dir.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        restrict_loading()
        self._resume_point: ResumePoint | None = None
        resume, load_from = kwargs.get('resume'), kwargs.get('load_from')
        self._resume_args = resume, None if resume == 'auto' else load_from
        self._checkpoint_hook = (kwargs.get('default_hooks') or {}).get('checkpoint') or {}
        self._settings = training_settings(kwargs)
        # setup_env, which MMEngine calls before it reads this dict, sets the seed of a resumed run.
        self._randomness = kwargs['randomness'] = {'seed': None, **(kwargs.get('randomness') or {})}
        with building('a run'):
            super().__init__(*args, **kwargs)
        if self._resume_point:
            self._load_from = str(self._resume_point.checkpoint)
            for checkpoint in self._resume_point.damaged:
                self.logger.warning(f'{checkpoint} is damaged and not used')
        elif self._resume:
            self._resume = False
            self.logger.warning(f'nothing to resume from in {self.work_dir}: starting a new run')
        self._signals = SignalRecorder()
        for hook in (SeedHook(), ResumeValidationHook(), InterruptionHook(self._signals)):
            self.register_hook(hook)

    def setup_env(self, env_cfg: dict) -> None:
        """Set up the processes, then choose the checkpoint to resume from.

        MMEngine reads a checkpoint much later, but its seed and position are needed to build the data loader.
        """
        super().setup_env(env_cfg)
        resume, load_from = self._resume_args
        if not resume:
            return
        point = find_resume_point(self.work_dir, load_from, self._checkpoint_hook, self._check_kind)
        if point:
            saved, configured = point.meta['seed'], self._randomness.get('seed')
            if configured not in (None, saved):
                raise CheckpointError(
                    f'cannot resume: {point.checkpoint} was trained with the seed {saved}, not {configured}'
                )
            self._randomness['seed'] = saved
        self._resume_point = point

    @staticmethod
    def _check_kind(checkpoint: Path) -> None:
        """Raise an error if this runner cannot resume from the checkpoint."""
        if checkpoint.is_dir():
            raise CheckpointError(
                f"{checkpoint} is sharded: resume it with runner_type = 'FullyShardedRunner', or convert its "
                'weights with tools/convert_checkpoint.py to a file for load_from'
            )

    @property
    def iter(self) -> int:
        """Iterations done; unlike MMEngine's, it does not build the training loop, as during testing."""
        return self._train_loop.iter if isinstance(self._train_loop, BaseLoop) else 0

    @property
    def epoch(self) -> int:
        """Epochs done; unlike MMEngine's, it does not build the training loop, as during testing."""
        return self._train_loop.epoch if isinstance(self._train_loop, BaseLoop) else 0

    def set_randomness(self, *args: Any, deterministic: bool = False, **kwargs: Any) -> None:
        """Seed as MMEngine does; with ``deterministic``, let torch only warn of nondeterministic kernels."""
        super().set_randomness(*args, deterministic=deterministic, **kwargs)
        if deterministic and torch.cuda.is_available():
            os.environ.setdefault('CUBLAS_WORKSPACE_CONFIG', ':4096:8')  # makes cuBLAS deterministic
            torch.use_deterministic_algorithms(True, warn_only=True)

    def build_train_loop(self, loop: BaseLoop | dict) -> BaseLoop:
        """Build the training loop on a data loader that starts where the resumed run was."""
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
                saved_extent=done.get('data'),
            )
            self._train_dataloader = cfg
        return super().build_train_loop(loop)

    @staticmethod
    def build_dataloader(dataloader: DataLoader | dict, *args: Any, **kwargs: Any) -> DataLoader:
        """Build a data loader that names broken samples and whose workers ignore signals."""
        if not isinstance(dataloader, dict):
            return dataloader
        dataset = dataloader['dataset']
        if not isinstance(dataset, dict) or dataset.get('type') != 'SeededDataset':
            dataloader = {**dataloader, 'dataset': dict(type='SeededDataset', dataset=dataset)}
        with building('a dataloader'), annotation_files() as files:
            loader = Runner.build_dataloader(dataloader, *args, **kwargs)
        vars(loader.dataset)['annotation_files'] = files
        # Set here since MMEngine deep-copies the config.
        notice, init = exit_notice_of(os.getpid()), loader.worker_init_fn
        loader.worker_init_fn = partial(shield_worker, exit_notice=notice, init=init)
        return loader

    def build_optim_wrapper(self, optim_wrapper: OptimWrapper | dict) -> OptimWrapper:
        """Build the optimizer; an error in its config becomes a PreflightError."""
        with building('the optimizer'):
            return super().build_optim_wrapper(optim_wrapper)

    def build_param_scheduler(self, scheduler: Any) -> Any:
        """Build the schedule; an error in its config becomes a PreflightError."""
        with building('the schedule'):
            return super().build_param_scheduler(scheduler)

    def build_evaluator(self, evaluator: Any) -> Evaluator:
        """Build an evaluator; an error in its config or annotation file becomes a PreflightError."""
        with building('an evaluator'), annotation_files():
            return super().build_evaluator(evaluator)

    def scale_lr(self, optim_wrapper: OptimWrapper, auto_scale_lr: dict | None = None) -> None:
        """Scale learning rates by the number of images in an optimizer step.

        MMEngine counts the images of one iteration, of which a step has ``accumulative_counts``.

        Raises:
            PreflightError: If ``base_batch_size`` is not a positive number.
        """
        if not auto_scale_lr or not auto_scale_lr.get('enable', False):
            return
        base = auto_scale_lr.get('base_batch_size')
        if not isinstance(base, (int, float)) or base <= 0:
            raise PreflightError(f'auto_scale_lr.base_batch_size must be a number of images, got {base!r}')
        wrappers = optim_wrapper.values() if isinstance(optim_wrapper, OptimWrapperDict) else [optim_wrapper]
        for wrapper in wrappers:
            counts = wrapper._accumulative_counts
            if counts > 1:
                self.logger.info(
                    f'base_batch_size {base} is {base / counts} images in each of {counts} iterations'
                )
            super().scale_lr(wrapper, {**auto_scale_lr, 'base_batch_size': base / counts})

    def register_default_hooks(self, hooks: dict | None = None) -> None:
        """Register hooks; None removes one, by its name. MMEngine takes None for its own hooks alone."""
        hooks = hooks or {}
        removed = {name for name, hook in hooks.items() if hook is None} - {*MMENGINE_HOOKS}
        super().register_default_hooks({name: hooks[name] for name in hooks if name not in removed})

    def register_hook(self, hook: Hook | dict, *args: Any, **kwargs: Any) -> None:
        """Register a hook; CheckpointHook is replaced by KeepingCheckpointHook."""
        names = (CheckpointHook, 'CheckpointHook', 'mmengine.CheckpointHook')
        if isinstance(hook, dict) and hook.get('type') in names:
            hook = {**hook, 'type': KeepingCheckpointHook}
        super().register_hook(hook, *args, **kwargs)

    def train(self) -> nn.Module:
        """Train while holding a lock on the work dir; stop the data loaders' workers at the end.

        Raises:
            PreflightError: If another run trains in the work dir.
        """
        with locked(self.work_dir), stopping_workers(self, '_train_loop', '_val_loop'), self._signals:
            call_in_main_process(self._clean_work_dir)
            return super().train()

    def val(self) -> dict[str, float]:
        """Validate; stop the data loader's workers at the end."""
        with stopping_workers(self, '_val_loop'):
            return super().val()

    def test(self) -> dict[str, float]:
        """Test; stop the data loader's workers at the end."""
        with stopping_workers(self, '_test_loop'):
            return super().test()

    def _clean_work_dir(self) -> None:
        """Remove unfinished checkpoints of a killed run, and warn of checkpoints that will be replaced."""
        out_dir, template = (self._checkpoint_hook.get(key) for key in ('out_dir', 'filename_tmpl'))
        remove_unfinished(self.work_dir)
        if out_dir and not is_remote(out_dir):
            remove_unfinished(checkpoint_folder(self.work_dir, out_dir))
        saved = [] if self._resume else saved_checkpoints(self.work_dir, out_dir, template)
        if saved:
            self.logger.warning(
                f'{self.work_dir} has checkpoints of an earlier run, such as {saved[0].name}, which this run '
                'will replace one by one; --resume continues that run, another --work-dir keeps it'
            )

    @property
    def _has_one_optimizer(self) -> bool:
        return isinstance(self.optim_wrapper, OptimWrapper) and not isinstance(
            self.optim_wrapper, OptimWrapperDict
        )

    def resume(self, *args: Any, **kwargs: Any) -> None:
        """Resume; if the training settings have changed, use those of the present config.

        Raises:
            CheckpointError: If the checkpoint's state cannot be used under the present config.
        """
        meta = self._resume_point.meta if self._resume_point else {}
        changed = changed_settings(meta.get('settings', self._settings), self._settings)
        order = meta.get('parameter_order')  # the saved state has only the numbers of parameters
        if order and self._has_one_optimizer and order != parameter_order(self.optim_wrapper, self.model):
            raise CheckpointError(
                f"cannot resume from {self._load_from}: the names or the order of the optimizer's parameters "
                'have changed with model or optim_wrapper; start a new run from the weights with load_from'
            )
        loop = self.train_loop
        batches = loop.dataloader.batch_sampler
        if (self.auto_scale_lr or {}).get('enable') and 'data' in meta:
            if meta['data']['batch_size'] != batches.extent['batch_size']:
                changed.append('batch size')
        if changed and not self._has_one_optimizer:
            raise CheckpointError(
                f'cannot resume several optimizers after a change of {", ".join(changed)}: undo the change'
            )
        if changed:
            options = [
                {name: copy.copy(value) for name, value in group.items() if name != 'params'}
                for group in self.optim_wrapper.param_groups
            ]
            kwargs['resume_param_scheduler'] = False
        super().resume(*args, **kwargs)
        if loop.iter > loop.max_iters:
            raise CheckpointError(
                f'cannot resume: {loop.iter} iterations have been done, train_cfg asks for {loop.max_iters}'
            )
        if changed:
            self.logger.warning(f'resuming with a changed {", ".join(changed)}')
            length = len(loop.dataloader)
            # The last iteration of an epoch may be done, but not its end.
            by_epoch = isinstance(loop, EpochBasedTrainLoop)
            ends = range(length, loop.epoch * length + 1, length) if by_epoch else ()
            replay_schedule(self.optim_wrapper, options, self.param_schedulers or [], loop.iter, ends)
        if isinstance(loop, IterBasedTrainLoop) and isinstance(batches, ResumableBatchSampler):
            loop.dataloader_iterator = ResumedBatches(loop.dataloader_iterator, loop.iter)

    def save_checkpoint(
        self,
        out_dir: str,
        filename: str,
        *args: Any,
        meta: dict | None = None,
        backend_args: dict | None = None,
        **kwargs: Any,
    ) -> None:
        """Save a checkpoint; a local file is either complete or does not exist.

        Raises:
            CheckpointError: If a local file cannot be written, as on a full disk.
        """
        meta = dict(meta or {}, settings=self._settings)
        if self._has_one_optimizer:
            meta['parameter_order'] = parameter_order(self.optim_wrapper, self.model)
        batches = self.train_dataloader.batch_sampler
        if isinstance(batches, ResumableBatchSampler):
            meta['data'] = batches.extent
        is_local = not is_remote(out_dir)
        if is_local:
            backend_args = backend_args or dict(backend='atomic')
        try:
            super().save_checkpoint(out_dir, filename, *args, meta=meta, backend_args=backend_args, **kwargs)
        except OSError as error:
            if not is_local:
                raise
            newest = next(filter(is_complete, saved_checkpoints(out_dir)), None)
            raise CheckpointError(
                f'cannot write {filename} in {out_dir}: {error.strerror}; '
                f'the newest checkpoint there is {newest}'
            ) from error
