"""A CheckpointHook that deletes an old checkpoint only after the new one is written."""

import os
import shutil
from pathlib import Path
from typing import Any

from mmengine.dist import is_main_process
from mmengine.hooks import CheckpointHook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

# Key of the message hub for the iterations of the checkpoints that InterruptionHook has saved.
INTERRUPTIONS = 'interruptions'


class _DeferredDeletion:
    """MMEngine's file backend, except that files are deleted only in :meth:`delete_all_but`."""

    def __init__(self, backend: Any) -> None:
        self.backend = backend
        self.outdated: dict[str, Any] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self.backend, name)

    def remove(self, path: str) -> None:
        self.outdated[path] = self.backend.remove

    def rmtree(self, path: str) -> None:
        self.outdated[path] = self.backend.rmtree

    def delete_all_but(self, kept: set[str | None]) -> None:
        for path, delete in self.outdated.items():
            if path not in kept:
                delete(path)
        self.outdated.clear()


@HOOKS.register_module()
class KeepingCheckpointHook(CheckpointHook):
    """MMEngine's CheckpointHook, but an old checkpoint is deleted after the new one is written, not before.

    ResumableRunner uses it in place of CheckpointHook. With ``max_keep_ckpts``, it also deletes checkpoints
    of interruptions. It deletes nothing outside of the checkpoint folder and the work dir, even if the
    resumed checkpoint names such a file as the best checkpoint.
    """

    def before_train(self, runner: Runner) -> None:
        info = runner.message_hub.runtime_info
        if not all(isinstance(step, int) for step in info.get('keep_ckpt_ids', ())):
            runner.message_hub.pop_info('keep_ckpt_ids')  # would become parts of the names of deleted files
        super().before_train(runner)
        self.file_backend = _DeferredDeletion(self.file_backend)
        if self.save_best is None:
            return
        if len(self.key_indicators) == 1:
            self.best_ckpt_path = self._in_own_folder(self.best_ckpt_path)
        else:
            for name, path in self.best_ckpt_path_dict.items():
                self.best_ckpt_path_dict[name] = self._in_own_folder(path)

    def _in_own_folder(self, path: Any) -> str | None:
        """Return the path of a best checkpoint in this run's folder, which may have been moved since."""
        name = os.path.basename(str(path).replace('\\', '/'))
        return self.file_backend.join_path(self.out_dir, name) if name.startswith('best_') else None

    def _save_checkpoint_with_step(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        super()._save_checkpoint_with_step(runner, *args, **kwargs)
        self._delete_outdated()
        iterations = runner.message_hub.pop_info(INTERRUPTIONS, ())
        if self.max_keep_ckpts > 0 and is_main_process():
            kept = {
                os.path.join(self.out_dir, self.filename_tmpl.format(step)) for step in self.keep_ckpt_ids
            }
            for path in (os.path.join(runner.work_dir, f'iter_{int(number)}.pth') for number in iterations):
                if path not in kept:
                    shutil.rmtree(path) if os.path.isdir(path) else Path(path).unlink(missing_ok=True)

    def _save_best_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        super()._save_best_checkpoint(*args, **kwargs)
        self._delete_outdated()

    def _delete_outdated(self) -> None:
        best = getattr(self, 'best_ckpt_path_dict', {}).values()
        self.file_backend.delete_all_but({self.last_ckpt, getattr(self, 'best_ckpt_path', None), *best})
