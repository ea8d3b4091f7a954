"""tools/analysis/learning_curves.py on logs as MMEngine writes them."""

import json

import pytest

from revcol_mm.analysis.learning_curves import table

from .subprocesses import REPO, run

TOOL = 'tools/analysis/learning_curves.py'


def write_run(work_dir, *logs, save_best='mIoU'):
    """Write logs, one for each time that the run was started."""
    for number, records in enumerate(logs):
        folder = work_dir / f'2026010{number}_000000/vis_data'
        folder.mkdir(parents=True)
        (folder / 'scalars.json').write_text('\n'.join(map(json.dumps, records)))
        (folder / 'config.py').write_text(f'default_hooks = dict(checkpoint=dict(save_best={save_best!r}))')


def train(step, loss, **more):
    return dict(lr=0.1, loss=loss, iter=step, step=step, **more)


def validate(step, **metrics):
    return dict(**metrics, data_time=0.1, time=0.2, step=step)


def curves(out):
    assert (out / 'learning_curves.png').stat().st_size > 5000
    return json.loads((out / 'learning_curves.json').read_text())


def test_a_resumed_run_is_one_curve_of_the_metric_that_its_config_calls_best(tmp_path):
    columns = dict(iter=20, step=20, **{'gradient_norm/column_00': 1.0})
    first = [train(10, 3.0), train(20, 2.0), columns, validate(20, aAcc=50.0, mIoU=10.0), train(30, 9.0)]
    again = [train(30, 1.5), train(40, 1.0), validate(40, aAcc=60.0, mIoU=20.0)]
    write_run(tmp_path / 'seg', first, again)
    printed = run(TOOL, tmp_path / 'seg', '--out', tmp_path / 'out')
    loss, metric = curves(tmp_path / 'out')
    assert (loss['metric'], loss['steps'], loss['mean']) == ('loss', [10, 20, 30, 40], [3.0, 2.0, 1.5, 1.0])
    assert (metric['metric'], metric['steps'], metric['mean']) == ('mIoU', [20, 40], [10.0, 20.0])
    assert '| seg | 40 | mIoU | 20 |  |' in printed


def test_seeds_are_one_curve_with_a_band_where_all_have_been(tmp_path, call_tool):
    for seed, value in enumerate((10.0, 14.0, 12.0)):
        records = [train(10, 1.0), validate(10, mIoU=value), validate(20 + seed // 2, mIoU=50.0)]
        write_run(tmp_path / f'seg/seed{seed}', records)
    printed, _ = call_tool(TOOL, tmp_path / 'seg', '--out', tmp_path / 'out')
    _, metric = curves(tmp_path / 'out')
    assert (metric['seeds'], metric['steps']) == (3, [10])
    assert (metric['mean'], metric['low'], metric['high']) == ([12.0], [10.0], [14.0])
    assert '| seg | 10 | mIoU | 12 | 10, 14, 12 |' in printed


def test_validation_after_an_epoch_is_drawn_at_its_iteration(tmp_path, call_tool):
    records = [
        *(
            train(50, 2.0, epoch=1),
            train(100, 1.5, epoch=1),
            validate(1, **{'coco/bbox_mAP': 0.1, 'other': 1}),
        ),
        *(
            train(150, 1.2, epoch=2),
            train(200, 1.1, epoch=2),
            validate(2, **{'coco/bbox_mAP': 0.2, 'other': 1}),
        ),
    ]
    write_run(tmp_path / 'det', records, save_best='auto')
    call_tool(TOOL, tmp_path / 'det', '--out', tmp_path / 'out')
    _, metric = curves(tmp_path / 'out')
    assert (metric['metric'], metric['steps'], metric['mean']) == ('coco/bbox_mAP', [100, 200], [0.1, 0.2])


@pytest.mark.parametrize(
    'arguments, message',
    [
        ((), r'has no */vis_data/scalars.json'),
        (('--metrics', 'AP'), 'has no metric AP; it has loss, mIoU'),
        (('--metrics', 'mIoU', 'AP'), 'no run has a metric AP'),
    ],
)
def test_what_is_not_there_is_an_error_in_one_line(arguments, message, tmp_path, call_tool):
    if arguments:
        write_run(tmp_path, [train(10, 1.0), validate(10, mIoU=10.0)])
    _, error = call_tool(TOOL, tmp_path, *arguments)
    assert error.startswith('error: ') and message in error


def test_nothing_in_the_work_dir_runs(tmp_path, call_tool):
    write_run(tmp_path / 'run', [train(10, 1.0), validate(10, mIoU=10.0)])
    (config,) = tmp_path.glob('run/*/vis_data/config.py')
    config.write_text(f'a = open({str(tmp_path / "it_ran")!r}, "w")\n')
    _, error = call_tool(TOOL, tmp_path / 'run')
    assert error.startswith('error: ') and 'config.py:1: ' in error and 'is no literal' in error
    assert not (tmp_path / 'it_ran').exists()
    config.unlink()
    assert 'has no */vis_data/config.py' in call_tool(TOOL, tmp_path / 'run')[1]


def test_the_recorded_trainings_are_quoted_as_recorded_and_learn():
    folder = REPO / 'docs/trainings'
    rows, untrained = (
        json.loads((path / 'learning_curves.json').read_text()) for path in (folder, folder / 'untrained')
    )
    text = folder.with_suffix('.md').read_text()
    assert table(rows) in text and table(untrained) in text
    for row in rows:
        first, last = row['mean'][0], row['mean'][-1]
        if row['metric'] == 'loss':
            assert last < first, row['run']
        else:
            trivial = max(other['mean'][-1] for other in untrained if other['metric'] == row['metric'])
            assert last > 2 * trivial and last > 0.1, row['run']
    configs = [p for folder in ('.', 'baselines') for p in (REPO / 'configs' / folder).glob('*_sample.py')]
    assert {row['run'] for row in rows} == {path.stem for path in configs}
