"""tools/analysis/benchmark_blocks.py, which compares reversible blocks with those of a network."""

import json
import runpy

import pytest

from .random_checkpoint import PLAIN_SEGMENTOR, random_checkpoint
from .subprocesses import REPO, run

TOOL = 'tools/analysis/benchmark_blocks.py'


def arguments(sample_data, *options):
    data = f'test_dataloader.dataset.data_root={sample_data / "ade20k"}/'
    checkpoint = random_checkpoint(PLAIN_SEGMENTOR)
    return TOOL, PLAIN_SEGMENTOR, checkpoint, *options, '--cfg-options', data


@pytest.mark.slow
def test_difference_and_memory_of_every_beta(sample_data, tmp_path, device):
    options = ('--blocks', 'backbone.stages.2', '--betas', 0.1, 0.02, '--repeats', 1, '--size', 320, 320)
    printed = run(*arguments(sample_data, *options, '--device', device, '--out', tmp_path))
    report = json.loads((tmp_path / 'benchmark_blocks.json').read_text())
    assert report['num_blocks'] == 9 and report['shape'] == [4, 148, 20, 20]
    large_beta, small_beta = (row['of_change'] for row in report['distances'])
    assert 0 < 2 * small_beta < large_beta
    plain, checkpointed, *reversible = (row['mib'] for row in report['steps'])
    assert plain > max(checkpointed, *reversible) > 0 and len(reversible) == 2
    assert f'| 0.02 | {report["distances"][1]["of_output"]:.2g} | {small_beta:.2g} |' in printed
    assert (tmp_path / 'benchmark_blocks.png').stat().st_size > 10_000


@pytest.mark.parametrize(
    'options, message',
    [
        (('--blocks', 'backbone.layers'), 'no such module; it has backbone.downsample_layers, '),
        (
            ('--blocks', 'backbone.downsample_layers'),
            'has 0 blocks at its end that keep the shape, but at least 2 are needed',
        ),
        (('--blocks', 'backbone.stages.2', '--betas', 0), 'beta must be at least 0.004 and below 1, got 0.0'),
    ],
)
def test_invalid_options_are_errors(sample_data, options, message, call_tool):
    _, error = call_tool(*arguments(sample_data, *options))
    assert message in error


def test_docs_quote_the_record():
    docs = (REPO / 'docs/tutorials/network.md').read_text()
    record = json.loads((REPO / 'docs/figures/benchmark_blocks.json').read_text())
    assert runpy.run_path(str(REPO / TOOL))['table'](record) in docs
    assert record['distances'][-1]['beta'] == 0.004 and record['distances'][-1]['of_output'] < 0.01
