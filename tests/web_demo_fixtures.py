"""Fixtures for tests of tools/web_demo.py."""

import re
import runpy
import subprocess
import sys

import pytest
import torch

from revcol_mm.apis import init_model

from .subprocesses import REPO

REVCOL = REPO / 'configs/upernet_revcol_nano_sample.py'
PLAIN = REPO / 'configs/baselines/upernet_convnext_sample.py'


@pytest.fixture(scope='module')
def models(tmp_path_factory):
    """Configs and checkpoints of a RevCol and of a network without columns, with random weights."""
    folder = tmp_path_factory.mktemp('checkpoints')
    models = []
    for config in (REVCOL, PLAIN):
        torch.manual_seed(0)
        checkpoint = folder / f'{config.stem}.pth'
        torch.save(init_model(config, device='cpu').state_dict(), checkpoint)
        models.append((str(config), str(checkpoint)))
    return models


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
