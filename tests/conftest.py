"""Fixtures shared by all tests."""

import json
import logging
import os
import runpy
import sys
from pathlib import Path

os.environ.setdefault('OMP_NUM_THREADS', '1')  # before torch: two workers' threads would fight for 2 cores

import pytest
import torch
from mmengine.logging import MMLogger

from .subprocesses import REPO, run

DATA = Path(__file__).parent / 'data'


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(scope='session', params=['backbone_4col', 'backbone_huge_4col'])
def golden(request):
    """A model's weights, input, features of every column, loss and gradients, computed in float64 with the
    published code."""
    return torch.load(DATA / f'{request.param}.pt', weights_only=True)


@pytest.fixture(scope='session')
def published_keys():
    """Keys and shapes of the published classification checkpoints."""
    return json.loads((DATA / 'checkpoint_keys.json').read_text())


@pytest.fixture(scope='session')
def sample_data(tmp_path_factory):
    """A small run of tools/prepare_sample_data.py."""
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
