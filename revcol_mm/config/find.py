"""The configs that come with this package: in the repository beside it, installed in ``.mim/configs``."""

import difflib
from pathlib import Path

from mmengine.config import Config

PACKAGE = Path(__file__).parents[1]


def config_folder() -> Path:
    """Where the configs are: where OpenMMLab's packages have theirs, or in the repository.

    Raises:
        FileNotFoundError: If they are in neither.
    """
    folders = PACKAGE / '.mim/configs', PACKAGE.parent / 'configs'
    for folder in folders:
        if (folder / '_base_').is_dir():
            return folder
    raise FileNotFoundError(f'no configs in {" or ".join(map(str, folders))}: install revcol_mm anew')


def find_config(name: str | Path) -> Path:
    """Find a config by its path, or by the name of one that comes with this package.

    Args:
        name: Such as 'configs/my_detector.py', 'dino_revcol_t_coco' or 'baselines/upernet_resnet_camvid'.

    Raises:
        FileNotFoundError: If there is neither a file nor such a config; names similar ones.
    """
    path = Path(name)
    if path.is_file():
        return path
    folder = config_folder()
    packaged = folder / path.with_suffix('.py')
    if not path.is_absolute() and packaged.is_file():
        return packaged
    names = [file.stem for file in folder.glob('*.py')]
    similar = difflib.get_close_matches(path.stem, names, n=3)
    raise FileNotFoundError(f'no config {name}' + (f'; there is {", ".join(similar)}' if similar else ''))


def get_config(name: str | Path) -> Config:
    """Read a config, which is code, by its path or by the name of one that comes with this package.

    Raises:
        FileNotFoundError: See :func:`find_config`.
    """
    return Config.fromfile(find_config(name))
