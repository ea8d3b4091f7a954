"""Errors that users can fix are printed in one line; bugs keep their traceback."""

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

# Installed packages, even if they are outside of site-packages because of `pip install -e`.
LIBRARIES = ('revcol_mm', 'mmengine', 'mmcv', 'mmdet', 'mmseg', 'mmpretrain')


class CheckpointError(RuntimeError):
    """A checkpoint cannot be read, or does not fit the model."""


class PreflightError(ValueError):
    """A part of a run cannot be built, or its config, data and model do not fit together."""


@contextmanager
def building(what: str) -> Iterator[None]:
    """Replace an error in the block by a PreflightError that says what could not be built, why and where.

    Args:
        what: What is built in the block, such as 'the model'.

    Raises:
        PreflightError: On any error but PreflightError and CheckpointError, which pass unchanged.
    """
    try:
        yield
    except (PreflightError, CheckpointError):
        raise
    except Exception as error:  # a class that the config names may raise anything
        raise PreflightError(f'cannot build {what}: {reason_and_place(error)}') from error


def reason_and_place(error: Exception) -> str:
    """Return the class and the message of an error, and the file and line that raised it, in one line."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    reason = ' '.join(f'{type(error).__name__}: {error}'.split())
    return f'{reason} ({Path(place.filename).name}:{place.lineno})'


@contextmanager
def errors_in_one_line(*more: type[Exception]) -> Iterator[None]:
    """End the program with a one-line message and exit status 1 on errors that users can fix.

    The traceback is printed above the message if it may be needed: if code of the user (outside of installed
    packages and configs) was running, or if another package raised the error without naming a file. The log
    file, if there is one, gets the traceback of every error, including those that are not caught here.

    Args:
        more: Error classes to catch besides OSError, ValueError and CheckpointError.

    Raises:
        SystemExit: In place of these errors.
    """
    try:
        yield
    except (OSError, ValueError, CheckpointError, *more) as error:
        _log_traceback(error)
        expected = isinstance(error, (PreflightError, CheckpointError, *more)) or _is_raised_here(error)
        expected |= getattr(error, 'filename', None) is not None  # an OSError that names a file
        if not expected or _ran_user_code(error):
            traceback.print_exception(type(error), error, error.__traceback__)
        sys.exit(f'error: {error}')
    except Exception as error:
        _log_traceback(error)
        raise


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and those that led to it, as in a traceback."""
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _frames(error: BaseException) -> list[FrameType]:
    return [frame for frame, _ in traceback.walk_tb(error.__traceback__)]


def _is_raised_here(error: BaseException) -> bool:
    """Return whether the running program or this package raised the error, so that its message is ours."""
    frames = _frames(error)
    raised_in = frames[-1].f_globals
    package = (raised_in.get('__name__') or '').partition('.')[0]
    return package == 'revcol_mm' or raised_in is _program_globals(frames)


def _program_globals(frames: list[FrameType]) -> dict[str, Any]:
    """Return the globals of the program that called :func:`errors_in_one_line`: the first frame elsewhere."""
    return next((frame.f_globals for frame in frames if frame.f_globals is not globals()), {})


def _ran_user_code(error: BaseException) -> bool:
    program = _program_globals(_frames(error))
    for cause in _chain(error):
        for frame in _frames(cause):
            is_config = frame.f_globals.get('__name__') is None
            if not is_config and frame.f_globals is not program and _is_user_file(frame.f_code.co_filename):
                return True
        # An error in a worker of a data loader arrives as the text of its traceback.
        if any(map(_is_user_file, re.findall(r'File "(.*?)", line', str(cause)))):
            return True
    return False


def _is_user_file(file: str) -> bool:
    """Return whether a source file belongs neither to Python nor to an installed package."""
    if file.startswith('<'):  # frozen modules, `python -c`
        return False
    folders = [sysconfig.get_path(name) for name in ('stdlib', 'platstdlib', 'purelib', 'platlib')]
    folders += [*site.getsitepackages(), site.getusersitepackages()]
    for name in LIBRARIES:
        folders += getattr(sys.modules.get(name), '__path__', ())
    return not any(Path(file).is_relative_to(folder) for folder in folders)


def _log_traceback(error: BaseException) -> None:
    """Write the traceback to the log file, but not to the terminal, where it would hide the message."""
    logger = MMLogger.get_current_instance()
    text = ''.join(traceback.format_exception(type(error), error, error.__traceback__))
    record = logger.makeRecord(logger.name, logging.ERROR, __file__, 0, text, (), None)
    for handler in logger.handlers:
        if isinstance(handler, logging.FileHandler):
            handler.handle(record)
