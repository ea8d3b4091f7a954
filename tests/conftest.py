"""Fixtures shared by all tests."""

import json
from pathlib import Path

import pytest
import torch

from .subprocesses import run

DATA = Path(__file__).parent / 'data'
REPO = Path(__file__).parents[1]


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
