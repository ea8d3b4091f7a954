"""Data-loader workers that ignore signals and end with the training or with the main process."""

import os
import signal
from contextlib import contextmanager
from functools import cache
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from multiprocessing.util import Finalize
from threading import Thread
from typing import Callable, Iterator

from mmengine.runner import BaseLoop, IterBasedTrainLoop, Runner

SIGNALS = (signal.SIGTERM, signal.SIGINT)


@cache
def exit_notice_of(pid: int) -> Connection:
    """Return the end of a pipe that becomes readable when this process begins to exit.

    Args:
        pid: Id of this process. It is the key of the cache: a forked process needs a pipe of its own.
    """
    notice, sender = Pipe(duplex=False)
    Finalize(None, sender.send, [None], exitpriority=0)
    return notice


def shield_worker(worker_id: int, exit_notice: Connection, init: Callable[[int], None] | None = None) -> None:
    """Make a data-loader worker ignore SIGTERM and SIGINT: a ``worker_init_fn``.

    Slurm and Ctrl-C signal the whole process group, but the main process needs its workers to finish the
    iteration. Since multiprocessing ends workers by SIGTERM at exit and would now wait forever, a thread
    ends the worker as soon as its parent begins to exit.

    Args:
        worker_id: Number of the worker.
        exit_notice: :func:`exit_notice_of` of the parent.
        init: MMEngine's or the user's ``worker_init_fn``, which is called afterwards.
    """
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    Thread(target=_exit_with_parent, args=(exit_notice,), daemon=True).start()
    if init is not None:
        init(worker_id)


def _exit_with_parent(exit_notice: Connection) -> None:
    exit_notice.poll(None)
    os._exit(0)


@contextmanager
def stopping_workers(runner: Runner, *loops: str) -> Iterator[None]:
    """Stop the worker processes of a runner's loops at the end, by releasing the iterators over their data.

    Left to Python's garbage collector, which closes the queue through which a worker is told to end before
    torch sends the message, every worker would be waited for 5 seconds, and live on since it ignores SIGTERM.

    Args:
        runner: The runner.
        loops: Names of the attributes with its loops, which may be built inside the context.
    """
    try:
        yield
    finally:
        for loop in (getattr(runner, name) for name in loops):
            if isinstance(loop, BaseLoop):
                loop.dataloader._iterator = None  # that of persistent workers
                if isinstance(loop, IterBasedTrainLoop):
                    loop.dataloader_iterator = None
