"""tools/analysis/learning_curves.py on logs in MMEngine's format."""

import json

import pytest

from revcol_mm.analysis.learning_curves import table

from .subprocesses import REPO

TOOL = 'tools/analysis/learning_curves.py'


def write_run(work_dir, *logs, save_best='mIoU'):
    """Write a log for each start of a run."""
    for number, records in enumerate(logs):
        folder = work_dir / f'2026010{number}_000000/vis_data'
        folder.mkdir(parents=True)
        (folder / 'scalars.json').write_text('\n'.join(map(json.dumps, records)))
        (folder / 'config.py').write_text(f'default_hooks = dict(checkpoint=dict(save_best={save_best!r}))')


def train(step, loss, **more):
    return dict(lr=0.1, loss=loss, iter=step, step=step, **more)


def validate(step, **metrics):
    return dict(**metrics, data_time=0.1, time=0.2, step=step)


@pytest.fixture
def curves(tmp_path, call_tool):
    """Run the tool on a folder; return its output and the rows that it wrote."""

    def call(run):
        printed, error = call_tool(TOOL, run, '--out', tmp_path / 'out')
        assert not error and (tmp_path / 'out/learning_curves.png').stat().st_size > 5000
        return printed, json.loads((tmp_path / 'out/learning_curves.json').read_text())

    return call


def test_resumed_run_is_one_curve_of_the_metric_that_selects_checkpoints(tmp_path, curves):
    columns = dict(iter=20, step=20, **{'gradient_norm/column_00': 1.0})
    first = [train(10, 3.0), train(20, 2.0), columns, validate(20, aAcc=50.0, mIoU=10.0), train(30, 9.0)]
    again = [train(30, 1.5), train(40, 1.0), validate(40, aAcc=60.0, mIoU=20.0)]
    write_run(tmp_path / 'seg', first, again)
    printed, (loss, metric) = curves(tmp_path / 'seg')
    assert (loss['metric'], loss['steps'], loss['mean']) == ('loss', [10, 20, 30, 40], [3.0, 2.0, 1.5, 1.0])
    assert (metric['metric'], metric['steps'], metric['mean']) == ('mIoU', [20, 40], [10.0, 20.0])
    assert '| seg | 40 | mIoU | 20 |  |' in printed


def test_seeds_are_averaged_at_common_iterations(tmp_path, curves):
    for seed, value in enumerate((10.0, 14.0, 12.0)):
        records = [train(10, 1.0), validate(10, mIoU=value), validate(20 + seed // 2, mIoU=50.0)]
        write_run(tmp_path / f'seg/seed{seed}', records)
    printed, (_, metric) = curves(tmp_path / 'seg')
    assert (metric['seeds'], metric['steps']) == (3, [10])
    assert (metric['mean'], metric['low'], metric['high']) == ([12.0], [10.0], [14.0])
    assert '| seg | 10 | mIoU | 12 | 10, 14, 12 |' in printed


def test_metrics_that_a_seed_lacks_are_left_out(tmp_path, curves):
    write_run(tmp_path / 'seg/seed0', [train(10, 1.0), validate(10, mIoU=10.0)])
    write_run(tmp_path / 'seg/seed1', [train(10, 3.0)])  # has not been validated yet
    _, (loss,) = curves(tmp_path / 'seg')
    assert (loss['metric'], loss['mean']) == ('loss', [2.0])


def test_seeds_without_a_common_iteration_are_an_error_in_one_line(tmp_path, call_tool):
    for seed in (0, 1):
        write_run(tmp_path / f'seg/seed{seed}', [train(10 + seed, 1.0)])
    _, error = call_tool(TOOL, tmp_path / 'seg')
    assert error == 'error: the seeds of seg have no iteration with loss in common'


def test_validation_after_an_epoch_is_drawn_at_its_iteration(tmp_path, curves):
    records = []
    for epoch in (1, 2):
        records += [train(100 * epoch - 50, 2.0, epoch=epoch), train(100 * epoch, 1.5, epoch=epoch)]
        records += [validate(epoch, **{'coco/bbox_mAP': 0.1 * epoch, 'other': 1})]
    write_run(tmp_path / 'det', records, save_best='auto')
    _, (_, metric) = curves(tmp_path / 'det')
    assert (metric['metric'], metric['steps'], metric['mean']) == ('coco/bbox_mAP', [100, 200], [0.1, 0.2])


@pytest.mark.parametrize(
    'arguments, message',
    [
        ((), r'has no */vis_data/scalars.json'),
        (('--metrics', 'AP'), 'has no metric AP; it has loss, mIoU'),
        (('--metrics', 'mIoU', 'AP'), 'no run has a metric AP'),
    ],
)
def test_missing_logs_and_metrics_are_errors_in_one_line(arguments, message, tmp_path, call_tool):
    if arguments:
        write_run(tmp_path, [train(10, 1.0), validate(10, mIoU=10.0)])
    _, error = call_tool(TOOL, tmp_path, *arguments)
    assert error.startswith('error: ') and message in error


def test_recorded_configs_are_not_executed(tmp_path, call_tool):
    write_run(tmp_path / 'run', [train(10, 1.0), validate(10, mIoU=10.0)])
    (config,) = tmp_path.glob('run/*/vis_data/config.py')
    config.write_text(f'a = open({str(tmp_path / "executed")!r}, "w")\n')
    _, error = call_tool(TOOL, tmp_path / 'run')
    assert error.startswith('error: ') and 'config.py:1: ' in error and 'is no literal' in error
    assert not (tmp_path / 'executed').exists()
    config.unlink()
    assert 'has no */vis_data/config.py' in call_tool(TOOL, tmp_path / 'run')[1]


def test_docs_quote_the_recorded_trainings():
    text = (REPO / 'docs/trainings.md').read_text()
    for folder in ('docs/trainings', 'docs/trainings/untrained'):
        assert table(json.loads((REPO / folder / 'learning_curves.json').read_text())) in text


def test_recorded_trainings_learn():
    folder = REPO / 'docs/trainings'
    rows, untrained = (
        json.loads((path / 'learning_curves.json').read_text()) for path in (folder, folder / 'untrained')
    )
    for row in rows:
        first, last = row['mean'][0], row['mean'][-1]
        if row['metric'] == 'loss':
            assert last < first, row['run']
        else:
            trivial = max(other['mean'][-1] for other in untrained if other['metric'] == row['metric'])
            assert last > 2 * trivial and last > 0.1, row['run']
    configs = [p for folder in ('.', 'baselines') for p in (REPO / 'configs' / folder).glob('*_sample.py')]
    assert {row['run'] for row in rows} == {path.stem for path in configs}
