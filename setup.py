"""Packaging. There are no hard requirements: users bring torch and one of two OpenMMLab sets, whose
distributions have different names; ``python -m revcol_mm.check_env`` tells what is missing."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent

setup(
    name='revcol_mm',
    version=re.search(r"__version__ = '(.+)'", (ROOT / 'revcol_mm/__init__.py').read_text())[1],
    description='RevCol, the Reversible Column Network, for dense prediction on OpenMMLab',
    long_description=(ROOT / 'README.md').read_text(),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    packages=find_packages(include=['revcol_mm', 'revcol_mm.*']),
    python_requires='>=3.10',
)
