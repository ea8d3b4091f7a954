"""Let only one run at a time train in a work dir."""

from contextlib import contextmanager
from pathlib import Path
from typing import Iterator

from filelock import FileLock, Timeout
from mmengine.logging import MMLogger

from revcol_mm.errors import PreflightError

from .resume_point import call_in_main_process


@contextmanager
def locked(work_dir: str) -> Iterator[None]:
    """Hold a lock on a work dir in the main process.

    Raises:
        PreflightError: In all processes, if another run holds the lock.
    """
    lock = FileLock(Path(work_dir, '.lock'))

    def acquire() -> None:
        try:
            lock.acquire(timeout=0)
        except NotImplementedError:
            MMLogger.get_current_instance().warning(
                f'the file system of {work_dir} has no file locks: make sure that no other run trains there'
            )
        except Timeout as error:
            raise PreflightError(
                f'another run trains in {work_dir}; wait until it has ended or choose another --work-dir'
            ) from error

    call_in_main_process(acquire)
    try:
        yield
    finally:
        lock.release()
