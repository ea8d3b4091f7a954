"""Fixtures shared by all tests."""

import json
import logging
import os
import runpy
import sys
from importlib.util import find_spec
from pathlib import Path

os.environ.setdefault('OMP_NUM_THREADS', '1')  # before torch: two workers' threads would fight for 2 cores

import pytest
import torch
from mmengine.logging import MMLogger

import revcol_mm  # noqa: F401  supplies mmcv's ops to test files that import them

from .subprocesses import REPO, run

DATA = Path(__file__).parent / 'data'
CUDA = pytest.param('cuda', marks=pytest.mark.cuda)


def pytest_runtest_setup(item):
    if item.get_closest_marker('cuda') and not torch.cuda.is_available():
        pytest.skip('needs a GPU')


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(params=['cpu', CUDA])
def device(request, monkeypatch):
    """The CPU, and a GPU as exact as it: by default cuDNN convolves float32 in TF32, which has 10 bits, and
    may add in random order."""
    monkeypatch.setattr(torch.backends.cudnn, 'allow_tf32', False)
    monkeypatch.setattr(torch.backends.cudnn, 'deterministic', True)
    return torch.device(request.param)


@pytest.fixture(params=['backbone_4col', 'backbone_huge_4col'])
def golden(request, device):
    """A model's weights, input, features of every column, loss and gradients, computed in float64 with the
    published code."""
    return torch.load(DATA / f'{request.param}.pt', device, weights_only=True)


@pytest.fixture(scope='session')
def published_keys():
    """Keys and shapes of the published classification checkpoints."""
    return json.loads((DATA / 'checkpoint_keys.json').read_text())


@pytest.fixture(scope='session')
def sample_data(tmp_path_factory):
    """A small run of tools/prepare_sample_data.py. Where scikit-learn, whose digits it takes, is missing:
    data/sample, made with the same options."""
    if find_spec('sklearn') is None:
        prepared = REPO / 'data/sample'
        return prepared if prepared.is_dir() else pytest.skip('needs scikit-learn, or data/sample')
    out = tmp_path_factory.mktemp('data') / 'sample'
    run('tools/prepare_sample_data.py', out, '--num-train', 12, '--num-val', 4)
    return out


@pytest.fixture
def log_messages():
    """What is logged by MMEngine's current logger during a test."""
    messages = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())
    logger = MMLogger.get_current_instance()
    logger.addHandler(handler)
    yield messages
    logger.removeHandler(handler)


@pytest.fixture
def call_tool(monkeypatch, capsys):
    """Runs a tool in this process, which has imported everything; returns what it printed, and its error."""

    def call(tool, *arguments):
        monkeypatch.chdir(REPO)
        monkeypatch.setattr(sys, 'argv', [tool, *map(str, arguments)])
        error = ''
        try:
            runpy.run_path(tool, run_name='__main__')
        except SystemExit as exit:
            error = str(exit.code or '')
        return capsys.readouterr().out, error

    return call
