"""The benchmark of reversible training, and what the README quotes of it."""

import json
import runpy

import pytest

from .subprocesses import REPO, run

TOOL = 'tools/analysis/benchmark_reversible.py'
FIGURES = REPO / 'docs/figures/benchmark_reversible.json'


def test_it_measures_every_mode_and_writes_a_table_json_and_a_plot(tmp_path, device):
    size = (64, 96) if device.type == 'cpu' else (256, 384)  # for kernels' work space to be small beside
    options = ('--size', *size, '--repeats', 1, '--device', device, '--out', tmp_path)
    said = run(TOOL, 'nano', '--num-columns', 2, 4, *options)
    report = json.loads((tmp_path / 'benchmark_reversible.json').read_text())
    assert [row['num_columns'] for row in report['rows']] == [2, 4]
    for row in report['rows']:
        plain, *checkpoints, reversible = row['modes'].values()
        assert plain['activation_mib'] > reversible['activation_mib'] > 0
        for checkpoint in checkpoints:
            assert plain['activation_mib'] > checkpoint['activation_mib'] > 0
            # On a GPU cuDNN adds gradients of convolutions in random order.
            assert checkpoint['gradient_error'] <= (0 if device.type == 'cpu' else 2e-5)
        assert 0 < reversible['gradient_error'] <= 2e-5
        assert all(mode['step_seconds'] > 0 for mode in row['modes'].values())
        if device.type == 'cuda':
            assert reversible['kernels'] > plain['kernels'] > 0 and reversible['waits'] > 0
        assert f'| nano | {row["num_columns"]} | reversible | {reversible["activation_mib"]:.0f} | ' in said
    assert (tmp_path / 'benchmark_reversible.png').stat().st_size > 10_000


def test_columns_of_another_network_tell_how_near_to_it_they_start():
    config = 'configs/upernet_convnext_nano_2columns_camvid.py'
    said = run(TOOL, config, '--num-columns', 1, 2, '--size', 64, 64, '--repeats', 1, '--device', 'cpu')
    rows = [
        line.split('|') for line in said.splitlines() if line.startswith('| upernet_convnext_nano_2columns')
    ]
    assert [int(row[2]) for row in rows] == [1] * 4 + [2] * 4
    heads = next(line for line in said.splitlines() if line.startswith('| arch')).split('|')
    assert heads[-2].strip() == 'start error' and {len(row) for row in rows} == {len(heads)}
    assert [row[-2].strip() for row in rows[:3] + rows[4:7]] == [''] * 6
    assert float(rows[3][-2]) == 0 and float(rows[7][-2]) < 1e-5  # of one column, of two
    assert 0 < float(rows[7][-3]) <= 2e-5
    assert 'no config with ReversibleColumns' in run(TOOL, 'configs/upernet_revcol_t_ade20k.py', expect=1)


@pytest.mark.parametrize(
    'options, message',
    [
        (('--num-columns', 0), 'start at 1'),
        (('--device', 'nowhere'), "device 'nowhere' is none of cpu"),
        (('--device', 'cpu', '--precision', 'tf32'), 'tf32 is for GPUs alone'),
    ],
)
def test_what_cannot_be_is_refused(options, message):
    assert message in run(TOOL, 'nano', *options, expect=2)


def test_readme_and_docs_quote_the_recorded_figures():
    report = json.loads(FIGURES.read_text())
    docs = (REPO / 'docs/reversible.md').read_text()
    assert runpy.run_path(str(REPO / TOOL))['table'](report) in docs
    assert report['machine'] in ' '.join(docs.split())
    modes = {row['num_columns']: row['modes'] for row in report['rows']}[32]
    reversible, plain = (f'{modes[mode]["activation_mib"]:.0f} MiB' for mode in ('reversible', 'plain'))
    readme = ' '.join((REPO / 'README.md').read_text().split())
    assert f'need {reversible} of activations instead of {plain}.' in readme


@pytest.mark.parametrize('name', ['h200_bf16', 'h200_fp32'])
def test_the_docs_quote_the_figures_recorded_on_a_gpu(name):
    report = json.loads(FIGURES.with_stem(f'{FIGURES.stem}_{name}').read_text())
    docs = (REPO / 'docs/reversible.md').read_text()
    assert runpy.run_path(str(REPO / TOOL))['table'](report) in docs
    assert report['machine'] in docs


@pytest.mark.parametrize('num_columns', [8, 16, 32])
def test_the_recorded_memory_hardly_grows_with_columns(num_columns):
    rows = {row['num_columns']: row['modes'] for row in json.loads(FIGURES.read_text())['rows']}
    growth = rows[num_columns]['reversible']['activation_mib'] / rows[4]['reversible']['activation_mib']
    assert growth <= 1.1
