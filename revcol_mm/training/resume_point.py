"""Choose the checkpoint that all processes of a run resume from."""

from pathlib import Path
from typing import Any, Callable, NamedTuple, TypeVar

from mmengine.dist import all_gather_object, broadcast_object_list, is_main_process

from revcol_mm.checkpoints.run_files import is_complete, newest_complete_checkpoint, read_meta, record_last
from revcol_mm.errors import CheckpointError

T = TypeVar('T')


class ResumePoint(NamedTuple):
    """The checkpoint that a run resumes from.

    Args:
        checkpoint: File, or folder of a sharded checkpoint.
        meta: The checkpoint's 'meta' dict, with iteration, epoch and seed.
        damaged: Newer checkpoints that cannot be used.
    """

    checkpoint: Path
    meta: dict[str, Any]
    damaged: list[Path]


def call_in_main_process(function: Callable[[], T]) -> T:
    """Call a function in the main process and return its result, or raise its exception, in all processes."""
    outcome: list[Any] = [None, None]
    if is_main_process():
        try:
            outcome[0] = function()
        except Exception as error:  # any type, because the other processes wait for the outcome
            outcome[1] = error
    broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]


def find_resume_point(
    work_dir: str, load_from: str | None, checkpoint_hook: dict[str, Any], check_kind: Callable[[Path], None]
) -> ResumePoint | None:
    """Find the checkpoint to resume from in the main process, and check that all processes can read it.

    Args:
        work_dir: Folder of the run.
        load_from: The checkpoint to use. None: see :func:`newest_complete_checkpoint`.
        checkpoint_hook: Config of the run's CheckpointHook.
        check_kind: Raises CheckpointError if the runner cannot resume from this kind of checkpoint.

    Returns:
        None if ``load_from`` is None and the run has no checkpoints.

    Raises:
        CheckpointError: If the named checkpoint is damaged or does not exist, all checkpoints are damaged, or
            the processes find different checkpoints at the same path.
    """

    def choose() -> tuple[Path | None, list[Path]]:
        if load_from is None:
            return newest_complete_checkpoint(
                work_dir, checkpoint_hook.get('out_dir'), checkpoint_hook.get('filename_tmpl')
            )
        checkpoint = Path(load_from)
        try:
            complete = is_complete(checkpoint)
        except OSError as error:
            raise CheckpointError(f'cannot resume: {checkpoint}: {error.strerror}') from error
        if not complete:
            raise CheckpointError(f'cannot resume: {checkpoint} is damaged or does not exist')
        if checkpoint.absolute().parent == Path(work_dir).absolute():
            # If this run is killed before its first save, the next --resume continues from here as well.
            record_last(work_dir, checkpoint.absolute())
        return checkpoint, []

    checkpoint, damaged = call_in_main_process(choose)
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
