"""How near to a network its reversible blocks are, and what they save, by a tool."""

import json

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

from .subprocesses import REPO, run

TOOL = 'tools/analysis/benchmark_blocks.py'
CONFIG = 'configs/baselines/upernet_convnext_sample.py'


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp('weights') / 'random.pth'
    cfg = Config.fromfile(REPO / CONFIG)
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope('mmseg'):
        torch.save(MODELS.build(cfg.model).state_dict(), path)
    return path


def measure(sample_data, checkpoint, *options, **kwargs):
    data = f'test_dataloader.dataset.data_root={sample_data / "ade20k"}/'
    return run(TOOL, CONFIG, checkpoint, *options, '--cfg-options', data, **kwargs)


def test_distance_and_memory_of_every_beta(sample_data, checkpoint, tmp_path, device):
    options = ('--blocks', 'backbone.stages.2', '--betas', 0.1, 0.02, '--repeats', 1, '--size', 320, 320)
    said = measure(sample_data, checkpoint, *options, '--device', device, '--out', tmp_path)
    report = json.loads((tmp_path / 'benchmark_blocks.json').read_text())
    assert report['num_blocks'] == 9 and report['shape'] == [4, 148, 20, 20]
    far, near = (row['of_change'] for row in report['distances'])
    assert 0 < 2 * near < far
    plain, checkpointed, *reversible = (row['mib'] for row in report['steps'])
    assert plain > max(checkpointed, *reversible) > 0 and len(reversible) == 2
    assert f'| 0.02 | {report["distances"][1]["of_output"]:.2g} | {near:.2g} |' in said
    assert (tmp_path / 'benchmark_blocks.png').stat().st_size > 10_000


@pytest.mark.parametrize(
    'options, message',
    [
        (('--blocks', 'backbone.layers'), r'no such module; it has backbone.downsample_layers, '),
        (
            ('--blocks', 'backbone.downsample_layers'),
            'has 0 blocks at its end that keep the shape, and needs two',
        ),
        (('--blocks', 'backbone.stages.2', '--betas', 0), 'beta must be at least 0.004 and below 1, got 0.0'),
    ],
)
def test_what_cannot_be_is_refused(sample_data, checkpoint, options, message):
    assert message in measure(sample_data, checkpoint, *options, expect=1)
