"""Command-line arguments for a config, and reading the config that they name."""

import argparse
import tempfile
from pathlib import Path

from mmengine.config import Config, DictAction

from revcol_mm.check_env import SCOPES, require
from revcol_mm.errors import building

from .find import find_config
from .recorded import read_recorded_model


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments for a config and for options that override its values."""
    parser.add_argument(
        'config', help='config file, or a name listed by `revcol configs`, such as dino_revcol_t_coco'
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        default={},
        metavar='KEY=VALUE',
        help='override values of the config, such as train_cfg.max_iters=1000',
    )


def read_config(config: str | Path | Config, recorded: bool = False) -> Config:
    """Read a config unless it is one already, and check that the packages for its task are installed.

    Args:
        config: A config, a file, whose code is run, or the name of a config that comes with this package,
            see :func:`revcol_mm.config.find.find_config`.
        recorded: The config was found beside a checkpoint and is not trusted: read it without running its
            code, see :func:`read_recorded_model`.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it cannot be read, has no model, or has no valid ``default_scope``.
        SystemExit: If a package that its task needs is missing.
    """
    if isinstance(config, Config):
        cfg, path = config, config.filename or 'the config'
    else:
        path = find_config(config)
        with building(f'the config {path}'):
            cfg = read_recorded_model(path) if recorded else Config.fromfile(path)
    scope = cfg.get('default_scope')
    if scope not in SCOPES:
        raise ValueError(
            f'{path}: default_scope is {scope!r}; set it to one of {", ".join(SCOPES)}, the package that the '
            'model comes from'
        )
    if not isinstance(cfg.get('model'), dict):
        raise ValueError(f'{path} has no model')
    require(SCOPES[scope])
    return cfg


def check_writable(folder: Path) -> None:
    """Create a folder if it is missing, and check that files can be written to it.

    Raises:
        ValueError: If not, with the reason.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise ValueError(f'cannot write in {folder}: {error.strerror}') from error
