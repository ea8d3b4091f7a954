"""MMEngine's CheckpointHook, so that a run always has a checkpoint to go on from."""

import os
from typing import Any

from mmengine.hooks import CheckpointHook
from mmengine.registry import HOOKS
from mmengine.runner import Runner


class _Later:
    """A file backend that deletes nothing before it is told to.

    Args:
        backend: MMEngine's file backend that does the work.
    """

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
    """MMEngine's CheckpointHook, which deletes a checkpoint only when its successor is written.

    ResumableRunner takes it wherever a config says CheckpointHook. It deletes nothing outside of its folder,
    whatever a checkpoint that was resumed from says was the best one.
    """

    def before_train(self, runner: Runner) -> None:
        """Find out what an earlier part of the run has kept."""
        info = runner.message_hub.runtime_info
        if not all(isinstance(step, int) for step in info.get('keep_ckpt_ids', ())):
            runner.message_hub.pop_info('keep_ckpt_ids')  # they become parts of names of files to delete
        super().before_train(runner)
        self.file_backend = _Later(self.file_backend)
        if self.save_best is None:
            return
        if len(self.key_indicators) == 1:
            self.best_ckpt_path = self._own(self.best_ckpt_path)
        else:
            own = {name: self._own(path) for name, path in self.best_ckpt_path_dict.items()}
            self.best_ckpt_path_dict.update(own)

    def _own(self, path: Any) -> str | None:
        """The best checkpoint of that name in this run's folder, which may have been moved."""
        name = os.path.basename(str(path).replace('\\', '/'))
        return self.file_backend.join_path(self.out_dir, name) if name.startswith('best_') else None

    def _save_checkpoint_with_step(self, *args: Any, **kwargs: Any) -> None:
        super()._save_checkpoint_with_step(*args, **kwargs)
        self._delete_outdated()

    def _save_best_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        super()._save_best_checkpoint(*args, **kwargs)
        self._delete_outdated()

    def _delete_outdated(self) -> None:
        best = getattr(self, 'best_ckpt_path_dict', {}).values()
        self.file_backend.delete_all_but({self.last_ckpt, getattr(self, 'best_ckpt_path', None), *best})
