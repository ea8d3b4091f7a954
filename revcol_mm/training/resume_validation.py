"""Validation of a resumed run that was interrupted before or during a validation."""

from pathlib import Path
from typing import Any

from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.runner import BaseLoop, EpochBasedTrainLoop, IterBasedTrainLoop, Runner

from revcol_mm.checkpoints.atomic_files import replacing

from .resume_point import call_in_main_process

RECORD = 'last_validation'  # file in the work dir: the iteration of the last completed validation


class ResumeValidationHook(Hook):
    """Runs the validation that was due at the iteration of the checkpoint, if it was not completed."""

    priority = 'LOWEST'

    def before_train(self, runner: Runner) -> None:
        record = Path(runner.work_dir, RECORD)

        def is_done() -> bool:
            if record.is_file() and record.read_text() == str(runner.iter):
                return True
            record.unlink(missing_ok=True)  # of another run, or of later iterations that will be repeated
            return False

        done = call_in_main_process(is_done)  # which alone writes the record
        if not done and runner.val_loop is not None and runner.iter and _is_due(runner.train_loop):
            runner.logger.info(f'the validation after iteration {runner.iter} was not completed: running it')
            runner.val_loop.run()

    def after_val_epoch(self, runner: Runner, *_: Any, **__: Any) -> None:
        if is_main_process() and runner.iter:
            with replacing(Path(runner.work_dir, RECORD)) as file:
                file.unfinished.write_text(str(runner.iter))


def _is_due(loop: BaseLoop) -> bool:
    """Return whether MMEngine's training loops would validate after the iterations done so far."""
    if isinstance(loop, IterBasedTrainLoop):
        done, end = loop.iter, loop.max_iters
    elif isinstance(loop, EpochBasedTrainLoop) and loop.iter == loop.epoch * len(loop.dataloader):
        done, end = loop.epoch, loop.max_epochs
    else:
        return False
    loop._decide_current_val_interval()
    return done >= loop.val_begin and (done % loop.val_interval == 0 or done == end)
