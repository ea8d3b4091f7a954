"""Read the config that a command line names."""

import argparse
import tempfile
from pathlib import Path

from mmengine.config import Config, DictAction

from revcol_mm.check_env import SCOPES, require
from revcol_mm.errors import building

from .find import find_config
from .recorded import read_recorded_model
from .scope import check_scope


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """Add a config and options that override its values."""
    parser.add_argument(
        'config', help='config file, or the name of one of `revcol configs`, such as dino_revcol_t_coco'
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        default={},
        metavar='KEY=VALUE',
        help='override values of the config, such as train_cfg.max_iters=1000',
    )


def read_config(path: str | Path, recorded: bool = False) -> Config:
    """Read a config, and check that what its task needs is installed.

    Args:
        path: The file, or the name of a config that comes with this package; see
            :func:`revcol_mm.config.find.find_config`. It is code, and is run.
        recorded: It was found beside somebody's checkpoint: nothing in it is run, see
            :func:`read_recorded_model`.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it cannot be read, has no model, or its ``default_scope`` is wrong.
        SystemExit: If the environment lacks what the config's task needs.
    """
    path = find_config(path)
    with building(f'the config {path}'):
        cfg = read_recorded_model(path) if recorded else Config.fromfile(path)
    check_scope(cfg)
    if not isinstance(cfg.get('model'), dict):
        raise ValueError(f'{path} has no model')
    require(SCOPES[cfg.default_scope])
    return cfg


def check_writable(folder: Path) -> None:
    """Make a folder where there is none, and write in it.

    Raises:
        ValueError: If that fails, with the reason.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise ValueError(f'cannot write in the work dir {folder}: {error.strerror}') from error
