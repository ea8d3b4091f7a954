"""tools/analysis/experiments.py, and the experiments in configs and docs."""

import json
import re
import shutil
from runpy import run_path

import pytest
from mmengine.config import Config

from revcol_mm.analysis.complexity import count_complexity

from .subprocesses import REPO

TOOL = 'tools/analysis/experiments.py'
tool = run_path(str(REPO / TOOL))
EXPERIMENTS = sorted((REPO / 'configs/experiments').glob('*.py'))


def write_experiment(folder, **changes):
    """Write an experiment of two seeds and two iterations."""
    experiment = dict(
        config='configs/upernet_revcol_nano_sample.py',
        iterations=2,
        seeds=[0, 1],
        metrics=['mIoU', 'aAcc'],
        options={},
        runs=dict(plain={}),
    )
    experiment.update(changes)
    path = folder / 'small.py'
    path.write_text(''.join(f'{key} = {value!r}\n' for key, value in experiment.items() if value is not None))
    return path


def test_makefile_lists_every_experiment():
    (names,) = re.findall(r'^EXPERIMENTS \?= ((?:.*\\\n)*.*)', (REPO / 'Makefile').read_text(), re.M)
    assert set(names.replace('\\', ' ').split()) == {path.stem for path in EXPERIMENTS}


@pytest.mark.slow
def test_every_run_is_executed_once_and_tabulated(sample_data, tmp_path, call_tool):
    root = {
        f'{split}_dataloader.dataset.data_root': str(sample_data / 'ade20k')
        for split in ('train', 'val', 'test')
    }
    path = write_experiment(
        tmp_path,
        options={**root, 'train_dataloader.batch_size': 2},
        runs={
            'one column': {
                'model.backbone.arch': dict(
                    _delete_=True, channels=(32, 64, 128, 256), layers=(1, 1, 1, 1), num_columns=1
                )
            }
        },
    )
    arguments = TOOL, path, '--work-dir', tmp_path / 'runs', '--out', tmp_path / 'out'
    printed, error = call_tool(*arguments)
    assert not error
    report = json.loads((tmp_path / 'out/results.json').read_text())
    seeds = report['results']['one column']
    values = [seeds[seed]['mIoU'] for seed in ('0', '1')]
    assert all(0 <= value <= 100 for value in values)
    assert all(
        'torch' in seed['machine'] and [*seed['curves']['loss']] == ['1', '2'] for seed in seeds.values()
    )
    lines = (tmp_path / 'out/table.md').read_text().splitlines()
    assert lines[0] == '| run | seeds | mIoU | aAcc | s / iteration | memory, MiB |'
    assert lines[2].startswith(
        f'| one column | 2 | {sum(values) / 2:.4g} ({min(values):.4g} to {max(values):.4g}) |'
    )
    assert lines[2] in printed and (tmp_path / 'out/loss.png').stat().st_size > 5000
    trained = Config.fromfile(tmp_path / 'runs/small/one_column/config.py')
    assert trained.model.backbone.arch.num_columns == 1

    times = {path: path.stat().st_mtime_ns for path in (tmp_path / 'runs').rglob('*')}
    assert call_tool(*arguments)[0].endswith(
        lines[2] + '\n\nTraining time: 0.0 hours.\n'
    )  # without running again
    assert times == {path: path.stat().st_mtime_ns for path in (tmp_path / 'runs').rglob('*')}
    shutil.rmtree(tmp_path / 'runs')
    assert lines[2] in call_tool(*arguments)[0]  # from the record in --out
    assert not (tmp_path / 'runs').exists()


def write_results(path, folder, changes, num_seeds):
    """Write the config and the results of a completed run."""
    for seed in range(num_seeds):
        (folder / f'seed{seed}').mkdir(parents=True)
        result = dict(mIoU=1.0 + seed, seconds_per_iteration=900.0, memory=1, curves=dict(loss={'1': 0.5}))
        (folder / f'seed{seed}/result.json').write_text(json.dumps(result))
    tool['run_config'](tool['read_experiment'](path), changes).dump(folder / 'config.py')


def test_changed_config_and_missing_metric_are_errors(tmp_path, call_tool):
    path = write_experiment(tmp_path)
    write_results(path, tmp_path / 'runs/small/plain', {}, num_seeds=2)
    arguments = TOOL, path, '--work-dir', tmp_path / 'runs'
    assert "plain has no metric 'aAcc'; it has curves, mIoU, memory" in call_tool(*arguments)[1]
    write_experiment(tmp_path, metrics=['mIoU'])
    printed, error = call_tool(*arguments)
    assert not error and '| plain | 2 | 1.5 (1 to 2) | 900.00 | 1 |\n\nTraining time: 1.0 hours.' in printed
    write_experiment(tmp_path, metrics=['mIoU'], options={'optim_wrapper.optimizer.lr': 0.5})
    assert 'has a run with another config: remove it' in call_tool(*arguments)[1]


def test_record_grows_by_runs_and_seeds(tmp_path, call_tool):
    runs = {'a': {}, 'b': {'optim_wrapper.optimizer.lr': 0.5}}
    path, out = write_experiment(tmp_path, metrics=['mIoU'], runs=runs), tmp_path / 'out'
    for name, changes in runs.items():
        write_results(path, tmp_path / 'runs/small' / name, changes, num_seeds=3)
    arguments = TOOL, path, '--work-dir', tmp_path / 'runs', '--out', out
    assert not call_tool(*arguments, '--runs', 'b', '--seeds', '2')[1]

    def lines():
        return (out / 'table.md').read_text().splitlines()[2:]

    rest = ['', 'Training time: 0.5 hours.', '', 'Not run yet: a (seed 0, 1); b (seed 0, 1).']
    assert lines() == ['| b | 1 | 3 | 900.00 | 1 |', *rest]
    assert not call_tool(*arguments)[1]
    rows = ['| a | 2 | 1.5 (1 to 2) | 900.00 | 1 |', '| b | 3 | 2 (1 to 3) | 900.00 | 1 |']
    rows += ['', 'Training time: 2.5 hours.']  # 5 seeds of 2 iterations of 900 s
    assert lines() == rows

    write_experiment(tmp_path, metrics=['mIoU'], runs=runs, seeds=[0, 1, 2, 3])
    assert call_tool(*arguments, '--runs', 'a', '--seeds', '0') == call_tool(*arguments, '--seeds', '0')
    missing = 'Not run yet: a (seed 2, 3); b (seed 3).'
    assert lines() == [*rows, '', missing]  # also without a new run

    write_experiment(tmp_path, metrics=['mIoU'], runs={**runs, 'c': dict(seeds=[5])}, seeds=[0, 1, 2])
    assert not call_tool(*arguments, '--runs', 'a', 'b', '--seeds', '0')[1]
    missing = 'Not run yet: a (seed 2); c (seed 5).'
    assert lines() == [*rows, '', missing]

    write_experiment(tmp_path, metrics=['mIoU'], runs={'a': {}, 'b': {'optim_wrapper.optimizer.lr': 0.25}})
    error = call_tool(*arguments)[1]
    assert re.search(r'has b with .*0\.5.* but the experiment has .*0\.25.*: give another --out', error)
    write_experiment(tmp_path, metrics=['mIoU'], runs={'a': {}})
    assert 'but the experiment has None: give another --out' in call_tool(*arguments)[1]


def test_results_of_calls_at_the_same_time_are_merged(tmp_path):
    experiment = dict(
        tool['read_experiment'](write_experiment(tmp_path)), metrics=['mIoU'], runs={'a': {}, 'b': {}}
    )
    result = dict(mIoU=1.0, seconds_per_iteration=1.0, memory=1)
    for name in ('b', 'a'):  # each call has read the record before the other has written it
        tool['write_record'](tmp_path, experiment, {name: {'0': result}})
    assert [*json.loads((tmp_path / 'results.json').read_text())['results']] == ['a', 'b']


def test_columns_are_compared_at_equal_flops_and_parameters():
    """The experiment promises a tolerance of 5%."""
    experiment = tool['read_experiment'](REPO / 'configs/experiments/camvid_ablation.py')
    counts = [
        count_complexity(tool['run_config'](experiment, changes), (256, 256))
        for name, changes in experiment['runs'].items()
        if name == 'the recipe' or name.startswith('columns')
    ]
    for kind in ('parameters', 'flops'):
        numbers = [getattr(count, kind)['backbone'] for count in counts]
        assert len(numbers) == 4 and numbers == pytest.approx([numbers[0]] * 4, rel=0.05), kind


def test_schedule_is_scaled_to_the_iterations_of_the_experiment(tmp_path):
    experiment = tool['read_experiment'](write_experiment(tmp_path, iterations=30))
    cfg = tool['run_config'](experiment, {'optim_wrapper.optimizer.lr': 0.5})
    assert [(each.begin, each.end) for each in cfg.param_scheduler] == [(0, 5), (5, 30)]
    assert cfg.train_cfg.max_iters == 30
    assert cfg.train_cfg.val_interval == cfg.default_hooks.checkpoint.interval == 8
    assert cfg.optim_wrapper.optimizer.lr == 0.5


@pytest.mark.parametrize(
    'changes, arguments, message',
    [
        (dict(seeds=None), [], 'small.py lacks seeds; it has config, iterations'),
        (dict(seed=0), [], 'small.py has unknown seed; it has'),
        ({}, ['--runs', 'other'], 'no run other; there are plain'),
        (dict(config='configs/nothing.py'), [], 'configs/nothing.py'),
        (dict(config='configs/dino_revcol_t_coco.py'), [], 'the schedule must count iterations'),
    ],
)
def test_invalid_experiment_is_an_error_in_one_line(changes, arguments, message, tmp_path, call_tool):
    _, error = call_tool(
        TOOL, write_experiment(tmp_path, **changes), '--work-dir', tmp_path / 'runs', *arguments
    )
    assert re.fullmatch(f'error: .*{re.escape(message)}.*', error) and not (tmp_path / 'runs').exists()


def test_missing_experiment_is_an_error(tmp_path, call_tool):
    _, error = call_tool(TOOL, tmp_path / 'nothing.py')
    assert error == f'error: no experiment {tmp_path / "nothing.py"}'


@pytest.mark.parametrize('path', EXPERIMENTS, ids=lambda path: path.stem)
def test_configs_of_experiments_exist_and_accept_their_options(path):
    experiment = tool['read_experiment'](path)
    for changes in experiment['runs'].values():
        tool['run_config'](experiment, changes)


def test_docs_quote_recorded_experiments():
    page = (REPO / 'docs/trainings.md').read_text()
    recorded = sorted((REPO / 'docs/trainings').glob('*/table.md'))
    assert recorded
    for path in recorded:
        report = json.loads(path.with_name('results.json').read_text())
        experiment = tool['read_experiment'](REPO / f'configs/experiments/{path.parent.name}.py')
        assert tool['read_record'](path.parent, experiment) == report['results']  # of today's runs
        assert tool['report'](experiment, report['results']) + '\n' == path.read_text()
        assert path.read_text() in page
    hours = sum(map(float, re.findall(r'^Training time: ([\d.]+) hours', page, re.M)))
    assert f'The trainings took {hours:.1f} hours in all' in page


def test_numbers_in_the_text_about_an_experiment_are_in_its_record():
    """They are values, means or ranges over seeds of its metrics, or settings of the experiment."""
    sections = re.split(r'^## ', (REPO / 'docs/trainings.md').read_text(), flags=re.M)
    checked = 0
    for path in EXPERIMENTS:
        (section,) = [each for each in sections if f'configs/experiments/{path.name}' in each[:200]]
        prose = re.sub(r'^\|.*|^Training time.*|`[^`]*`', '', section, flags=re.M)
        report = json.loads((REPO / f'docs/trainings/{path.stem}/results.json').read_text())
        settings = re.findall(r'\d+\.\d+', json.dumps([report['options'], report['runs']]))
        values = [float(each) for each in settings]
        for by_seed in report['results'].values():
            for metric in report['metrics']:
                seeds = [seed[metric] for seed in by_seed.values()]
                values += [*seeds, sum(seeds) / len(seeds), max(seeds) - min(seeds)]
        for number in re.findall(r'(?<![\d.])\d+\.\d+', prose):
            rounding = 0.51 * 10 ** -len(number.split('.')[1])
            assert any(abs(value - float(number)) <= rounding for value in values), (path.stem, number)
            checked += 1
    assert checked > 10
