"""For tools that want this file; what there is to say is in pyproject.toml."""

from setuptools import setup

setup()
