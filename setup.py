"""What pyproject.toml cannot say: configs and tools are installed where OpenMMLab's packages have theirs."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).parent
INSTALLED = ('configs', 'tools', 'model-index.yml')


class BuildWithConfigs(build_py):
    """Puts configs, tools and the index of models into ``revcol_mm/.mim`` of a wheel."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:  # they are found in the repository
            return
        mim = Path(self.build_lib, 'revcol_mm/.mim')
        shutil.rmtree(mim, ignore_errors=True)
        mim.mkdir(parents=True)
        for name in INSTALLED:
            copy = shutil.copytree if (HERE / name).is_dir() else shutil.copy
            copy(HERE / name, mim / name)


setup(cmdclass={'build_py': BuildWithConfigs})
