"""What is wrong with a config, its data or its model, told in one line."""

import traceback
from contextlib import contextmanager
from pathlib import Path
from typing import Iterator

from revcol_mm.models.checkpoint import CheckpointError


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
