"""What is wrong with a config, its data or its model, told in one line; bugs keep their traceback."""

import logging
import re
import site
import sys
import sysconfig
import traceback
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, Iterator

from mmengine.logging import MMLogger

LIBRARIES = ('revcol_mm', 'mmengine', 'mmcv', 'mmdet', 'mmseg', 'mmpretrain')  # also if installed with -e


class CheckpointError(RuntimeError):
    """A checkpoint and a model do not fit each other, or there is no checkpoint to load."""


class PreflightError(ValueError):
    """The data and the model of a run do not fit each other, or one of them cannot be built."""


@contextmanager
def building(what: str) -> Iterator[None]:
    """Say what could not be built of a config, why and where, instead of whatever its code raises.

    Raises:
        PreflightError: If anything but one of this package's own errors is raised.
    """
    try:
        yield
    except (PreflightError, CheckpointError):
        raise
    except Exception as error:  # of a class that the config names
        place = traceback.extract_tb(error.__traceback__)[-1]
        reason = ' '.join(f'{type(error).__name__}: {error}'.split())
        raise PreflightError(
            f'cannot build {what}: {reason} ({Path(place.filename).name}:{place.lineno})'
        ) from error


@contextmanager
def errors_in_one_line(*more: type[Exception]) -> Iterator[None]:
    """End the program with one line, and exit status 1, if what the user gave is at fault.

    The traceback stands above that line where it may be needed: if code of the user's own (in no installed
    package, and no config) was running, or if another package has raised the error and no file is to blame.
    The log file, if there is one, has it always, also that of an error that is not caught here.

    Args:
        more: Errors to catch besides OSError, ValueError and CheckpointError.

    Raises:
        SystemExit: Instead of these errors.
    """
    try:
        yield
    except (OSError, ValueError, CheckpointError, *more) as error:
        _log_traceback(error)
        expected = isinstance(error, (PreflightError, CheckpointError, *more)) or _is_raised_here(error)
        expected |= getattr(error, 'filename', None) is not None  # the system has named a file
        if not expected or _runs_users_code(error):
            traceback.print_exception(type(error), error, error.__traceback__)
        sys.exit(f'error: {error}')
    except Exception as error:
        _log_traceback(error)
        raise


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error, and those that led to it, as a traceback shows them."""
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _frames(error: BaseException) -> list[FrameType]:
    return [frame for frame, _ in traceback.walk_tb(error.__traceback__)]


def _is_raised_here(error: BaseException) -> bool:
    """Whether the tool or this package has raised it, and so chosen its words."""
    frames = _frames(error)
    raised_in = frames[-1].f_globals
    return raised_in is _tool(frames) or (raised_in.get('__name__') or '').partition('.')[0] == 'revcol_mm'


def _tool(frames: list[FrameType]) -> dict[str, Any]:
    """The globals of the program that asks for errors in one line: behind this file's own frame."""
    return next((frame.f_globals for frame in frames if frame.f_globals is not globals()), {})


def _runs_users_code(error: BaseException) -> bool:
    tool = _tool(_frames(error))
    for cause in _chain(error):
        for frame in _frames(cause):
            is_config = frame.f_globals.get('__name__') is None
            if not is_config and frame.f_globals is not tool and _is_users(frame.f_code.co_filename):
                return True
        # What torch hands on from a worker that loads data is the text of a traceback.
        if any(map(_is_users, re.findall(r'File "(.*?)", line', str(cause)))):
            return True
    return False


def _is_users(file: str) -> bool:
    """Whether a source file belongs neither to Python nor to an installed package."""
    if file.startswith('<'):  # frozen modules, and what was typed
        return False
    folders = [sysconfig.get_path(name) for name in ('stdlib', 'platstdlib', 'purelib', 'platlib')]
    folders += [*site.getsitepackages(), site.getusersitepackages()]
    for name in LIBRARIES:
        folders += getattr(sys.modules.get(name), '__path__', ())
    return not any(Path(file).is_relative_to(folder) for folder in folders)


def _log_traceback(error: BaseException) -> None:
    """Write it to the log file alone: on the screen it would hide the line that matters."""
    logger = MMLogger.get_current_instance()
    text = ''.join(traceback.format_exception(type(error), error, error.__traceback__))
    record = logger.makeRecord(logger.name, logging.ERROR, __file__, 0, text, (), None)
    for handler in logger.handlers:
        if isinstance(handler, logging.FileHandler):
            handler.handle(record)
