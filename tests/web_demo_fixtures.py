"""Fixtures for tests of tools/web_demo.py."""

import re
import runpy
import subprocess
import sys

import pytest

from .random_checkpoint import PLAIN_SEGMENTOR, SEGMENTOR, random_checkpoint
from .subprocesses import REPO

REVCOL, PLAIN = REPO / SEGMENTOR, REPO / PLAIN_SEGMENTOR


@pytest.fixture(scope='module')
def models():
    """Configs and checkpoints of a RevCol and of a network without columns, with random weights."""
    return [(str(config), str(random_checkpoint(config))) for config in (REVCOL, PLAIN)]


@pytest.fixture(scope='module')
def tool():
    """The names that tools/web_demo.py defines."""
    pytest.importorskip('werkzeug')
    return runpy.run_path(str(REPO / 'tools/web_demo.py'))


@pytest.fixture
def image(sample_data):
    return sample_data / 'ade20k/images/validation/scene_00000.jpg'


@pytest.fixture
def address(models):
    """Start the program as a user does: its address and the process."""
    options = [word for model in models for word in ('--models', *model)]
    command = [sys.executable, REPO / 'tools/web_demo.py', *options, '--port', '0', '--device', 'cpu']
    program = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=REPO
    )
    try:
        found = (re.search(r'http://127\.0\.0\.1:\d+', line) for line in program.stdout)
        address = next((match[0] for match in found if match), None)  # the stream stays open
        assert address, f'exit status {program.wait()}'
        yield address, program
    finally:
        program.terminate()
        program.wait(30)
