"""Fixtures shared by all tests."""

import json
import logging
import os
import runpy
import sys
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

os.environ.setdefault('OMP_NUM_THREADS', '1')  # before torch is imported: pytest runs 2 processes on 2 cores

import pytest
import torch
from mmengine.logging import MMLogger

from revcol_mm import RevCol  # also supplies mmcv's ops, which some test files import

from .checkpoints import SMALL, Trap, randomize, save_published
from .small_datasets import detection_config
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
    """The CPU, and a GPU that is as exact: without TF32, and with deterministic algorithms."""
    monkeypatch.setattr(torch.backends.cudnn, 'allow_tf32', False)
    monkeypatch.setattr(torch.backends.cudnn, 'deterministic', True)
    return torch.device(request.param)


@pytest.fixture(params=['backbone_4col', 'backbone_huge_4col'])
def golden(request, device):
    """Weights, input, features of all columns, loss and gradients of the published code in float64."""
    return torch.load(DATA / f'{request.param}.pt', device, weights_only=True)


@pytest.fixture(scope='session')
def published_keys():
    """Keys and shapes in the published classification checkpoints."""
    return json.loads((DATA / 'checkpoint_keys.json').read_text())


@pytest.fixture(scope='session')
def sample_data(tmp_path_factory):
    """A small run of tools/prepare_sample_data.py; data/sample where scikit-learn is missing."""
    if find_spec('sklearn') is None:
        prepared = REPO / 'data/sample'
        return prepared if prepared.is_dir() else pytest.skip('needs scikit-learn, or data/sample')
    out = tmp_path_factory.mktemp('data') / 'sample'
    run('tools/prepare_sample_data.py', out, '--num-train', 12, '--num-val', 4)
    return out


@pytest.fixture
def process_group(tmp_path):
    """torch.distributed with this process alone."""
    torch.distributed.init_process_group('gloo', f'file://{tmp_path}/rendezvous', rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.fixture
def in_repo(monkeypatch):
    """Make the repository the working folder."""
    monkeypatch.chdir(REPO)


@pytest.fixture
def source():
    """A small RevCol with random weights."""
    return randomize(RevCol(arch=SMALL))


@pytest.fixture
def published(source, tmp_path):
    """The source as a published classification checkpoint."""
    heads = {
        'cls_blocks.0.classifier.1.weight': torch.rand(10, 32),
        'decoder_blocks.0.projback.0.bias': torch.rand(48),
    }
    weights = {f'module.{name}': weight for name, weight in {**source.state_dict(), **heads}.items()}
    return save_published(tmp_path / 'published.pth', weights)


@pytest.fixture
def trap(tmp_path):
    """Code that must not run."""
    return Trap(tmp_path)


@contextmanager
def recorded_log(level):
    messages = []
    handler = logging.Handler(level)
    handler.emit = lambda record: messages.append(record.getMessage())
    logger = MMLogger.get_current_instance()
    logger.addHandler(handler)
    yield messages
    logger.removeHandler(handler)


@pytest.fixture
def log_messages():
    """The messages that MMEngine's current logger gets during a test."""
    with recorded_log(logging.NOTSET) as messages:
        yield messages


@pytest.fixture
def log_warnings():
    """The warnings that MMEngine's current logger gets during a test."""
    with recorded_log(logging.WARNING) as messages:
        yield messages


@pytest.fixture
def call_tool(monkeypatch, capsys):
    """A function that runs a tool in this process, and returns its output and its error message."""

    def call(tool, *arguments):
        monkeypatch.chdir(REPO)
        # Loggers that the tool creates write to the captured output, which is closed after the test.
        monkeypatch.setattr(MMLogger, '_instance_dict', MMLogger._instance_dict.copy())
        monkeypatch.setattr(sys, 'argv', [tool, *map(str, arguments)])
        error = ''
        try:
            runpy.run_path(tool, run_name='__main__')
        except SystemExit as exit:
            error = str(exit.code or '')
        return capsys.readouterr().out, error

    return call


@pytest.fixture
def coco(tmp_path):
    """The config of a detector on a small data set in COCO's format."""
    return detection_config(tmp_path)
