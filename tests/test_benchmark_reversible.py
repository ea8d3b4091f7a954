"""tools/analysis/benchmark_reversible.py, and its results in README and docs."""

import json
import runpy

import pytest

from .subprocesses import REPO, run

TOOL = 'tools/analysis/benchmark_reversible.py'


def test_tool_measures_every_mode(tmp_path, device):
    size = (64, 96) if device.type == 'cpu' else (256, 384)  # hides the workspaces of kernels
    options = ('--size', *size, '--repeats', 1, '--device', device, '--out', tmp_path)
    printed = run(TOOL, 'nano', '--num-columns', 2, 4, *options)
    report = json.loads((tmp_path / 'benchmark_reversible.json').read_text())
    assert [row['num_columns'] for row in report['rows']] == [2, 4]
    for row in report['rows']:
        plain, *checkpoints, reversible = row['modes'].values()
        assert plain['activation_mib'] > reversible['activation_mib'] > 0
        for checkpoint in checkpoints:
            assert plain['activation_mib'] > checkpoint['activation_mib'] > 0
            # On a GPU cuDNN sums gradients of convolutions in random order.
            assert checkpoint['gradient_error'] <= (0 if device.type == 'cpu' else 2e-5)
        assert 0 < reversible['gradient_error'] <= 2e-5
        if device.type == 'cuda':
            assert reversible['kernels'] > plain['kernels'] > 0 and reversible['waits'] > 0
        assert (
            f'| nano | {row["num_columns"]} | reversible | {reversible["activation_mib"]:.0f} | ' in printed
        )
    assert (tmp_path / 'benchmark_reversible.png').stat().st_size > 10_000


@pytest.mark.slow
def test_columns_of_another_network_report_their_start_error(tmp_path):
    config = 'configs/upernet_convnext_nano_2columns_camvid.py'
    options = ('--size', 64, 64, '--repeats', 1, '--device', 'cpu', '--out', tmp_path)
    printed = run(TOOL, config, '--num-columns', 1, 2, *options)
    report = json.loads((tmp_path / 'benchmark_reversible.json').read_text())
    one, two = (row['modes']['reversible'] for row in report['rows'])
    assert one['start_error'] == 0 <= two['start_error'] < 1e-5
    assert 0 < two['gradient_error'] <= 2e-5
    assert printed.count('| arch |') == printed.count('| start error |') == 1
    cells = [line.count('|') for line in printed.splitlines() if line.startswith('|')]
    assert len(cells) == 2 + 8 and len(set(cells)) == 1
    for row in report['rows']:
        assert [mode for mode in row['modes'] if 'start_error' in row['modes'][mode]] == ['reversible']


def test_backbone_of_any_config_becomes_columns():
    tool = runpy.run_path(str(REPO / TOOL))
    config = 'mmseg::segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py'
    backbone, num_columns = tool['read_backbone'](config)
    columns = tool['build'](backbone, num_columns)
    assert type(columns.subnet0.levels[0].blocks[0]).__module__ == 'mmseg.models.backbones.mit'
    assert columns.num_columns == num_columns == 2 and columns.channels == (32, 64, 160, 256)


@pytest.mark.parametrize(
    'options, message',
    [
        (('nano', '--device', 'cpu', '--precision', 'tf32'), 'tf32 requires a GPU'),
        (('configs/upernet_revcol_t_ade20k.py',), 'has no backbone other than RevCol: give an arch, '),
        (('gigantic',), 'gigantic is neither one of '),
    ],
)
def test_invalid_options_are_errors(options, message, call_tool):
    _, error = call_tool(TOOL, *options)
    assert message in error


def test_number_below_one_is_an_error():
    assert 'must be at least 1' in run(TOOL, 'nano', '--num-columns', 0, expect=2)


def recorded(name='', folder='figures'):
    return json.loads((REPO / f'docs/{folder}/benchmark_reversible{name}.json').read_text())


@pytest.mark.parametrize('name', ['', '_h200_bf16', '_h200_fp32'])
def test_docs_quote_the_records(name):
    docs = (REPO / 'docs/reversible.md').read_text()
    assert runpy.run_path(str(REPO / TOOL))['table'](recorded(name)) in docs
    assert recorded(name)['machine'] in ' '.join(docs.split())


def test_docs_quote_the_columns_of_other_networks():
    docs, record = (REPO / 'docs/tutorials/network.md').read_text(), recorded(folder='figures/columns')
    rows = [row for row in record['rows'] if row['num_columns'] in (2, 8)]
    assert len(rows) == 6
    assert runpy.run_path(str(REPO / TOOL))['table']({**record, 'rows': rows}) in docs
    assert record['machine'] in ' '.join(docs.split())


def test_figure_has_a_row_for_each_arch_that_has_several_numbers_of_columns():
    plot, record = runpy.run_path(str(REPO / TOOL))['plot'], recorded(folder='figures/columns')
    axes = plot(record).axes
    assert len(axes) == 6 and all(len(axis.lines[0].get_xdata()) == 4 for axis in axes)
    assert {axis.get_title().split('\n')[0] for axis in axes} == {row['arch'] for row in record['rows']}
    one_each = [row for row in record['rows'] if row['num_columns'] == 2]
    memory, time = plot({**record, 'rows': one_each}).axes
    assert len(memory.lines[0].get_xdata()) == len(time.lines[0].get_xdata()) == 3


def test_readme_quotes_the_recorded_memory():
    modes = {row['num_columns']: row['modes'] for row in recorded()['rows']}[32]
    reversible, plain = (f'{modes[mode]["activation_mib"]:.0f} MiB' for mode in ('reversible', 'plain'))
    readme = ' '.join((REPO / 'README.md').read_text().split())
    assert f'need {reversible} of activations instead of {plain}.' in readme


def test_recorded_memory_hardly_grows_with_columns():
    memory = {row['num_columns']: row['modes']['reversible']['activation_mib'] for row in recorded()['rows']}
    assert {8, 16, 32} <= memory.keys() and max(memory.values()) <= 1.1 * memory[4]
