"""Find configs that come with this package: in the repository, or, when installed, in ``.mim/configs``."""

import difflib
from pathlib import Path

from mmengine.config import Config

PACKAGE = Path(__file__).parents[1]


def config_folder() -> Path:
    """Return the folder of the configs: ``.mim/configs``, as in OpenMMLab's packages, or the repository's.

    Raises:
        FileNotFoundError: If there is neither.
    """
    folders = PACKAGE / '.mim/configs', PACKAGE.parent / 'configs'
    for folder in folders:
        if (folder / '_base_').is_dir():
            return folder
    raise FileNotFoundError(f'no configs in {" or ".join(map(str, folders))}: install revcol_mm again')


def find_config(name: str | Path) -> Path:
    """Return the path of a config, given its path or the name of one that comes with this package.

    Args:
        name: Such as 'configs/my_detector.py', 'dino_revcol_t_coco' or 'baselines/upernet_resnet_camvid'.

    Raises:
        FileNotFoundError: If there is no such file and no such config; the message suggests similar names.
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
    """Read a config, given its path or the name of one that comes with this package. Its code is run.

    Raises:
        FileNotFoundError: See :func:`find_config`.
    """
    return Config.fromfile(find_config(name))
