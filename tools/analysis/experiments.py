"""Train, test and compare the runs of an experiment, each with several seeds.

    python tools/analysis/experiments.py configs/experiments/camvid_growth.py --out work_dirs/camvid_growth

An experiment is a Python file that defines

    config      config of the runs
    iterations  length of every training, to which the config's schedule is scaled with its warm-up
    seeds       such as [0, 1, 2]
    metrics     columns of the table: metrics of the test and, with the prefix val/, of the last validation,
                such as ['mIoU', 'val/mIoU']
    options     changes of the config in all runs, such as {'optim_wrapper.optimizer.lr': 1e-3}
    runs        further changes of each run, by the name of the run; 'config', 'iterations' and 'seeds' can be
                replaced

Runs are executed one after the other in work_dirs/experiments/EXPERIMENT/RUN/seedN. Completed runs are not
repeated and interrupted runs are resumed; it is an error if the config of a run has changed in between. The
table is printed after each run. With --out it is also written to table.md, together with results.json and a
plot of the losses. Results that are already in this folder are kept and not run again, so that several
machines can contribute to one record. The table has the median time of a training iteration and the peak
memory of training, of the GPU if there is one and otherwise of the process. The training time below it is the
sum of these times over all iterations of all runs.
"""

import argparse
import contextlib
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import matplotlib
import psutil
import torch
from filelock import FileLock
from mmengine.config import Config

from revcol_mm.analysis.learning_curves import curve_row, plot, read_records, read_run
from revcol_mm.analysis.machine import machine
from revcol_mm.checkpoints.atomic_files import replacing
from revcol_mm.config.command_line import check_writable
from revcol_mm.config.options import merge_options
from revcol_mm.errors import errors_in_one_line
from revcol_mm.markdown_table import markdown_table

matplotlib.use('Agg')  # figures are files
TOOLS = Path(__file__).parents[1]
CONFIG = 'config.py'  # config of a run, next to the folders of its seeds
KEYS = {'config', 'iterations', 'seeds', 'metrics', 'options', 'runs'}
RECORD = 'results.json'

Result = dict[str, Any]  # result of one seed of a run
Results = dict[str, dict[str, Result]]  # by run, then by seed as a string, because JSON keys are strings


def read_experiment(path: Path) -> dict[str, Any]:
    """Read the file of an experiment.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If a key is missing or unknown.
    """
    if not path.is_file():
        raise FileNotFoundError(f'no experiment {path}')
    experiment = Config.fromfile(path).to_dict()
    for kind, keys in (('lacks', KEYS - set(experiment)), ('has unknown', set(experiment) - KEYS)):
        if keys:
            raise ValueError(f'{path} {kind} {", ".join(sorted(keys))}; it has {", ".join(sorted(KEYS))}')
    return experiment


def all_changes(experiment: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Return all that a run's results depend on: the changes of all runs and of this one."""
    shared = {key: experiment[key] for key in ('config', 'iterations')}
    merged = {**shared, **experiment['options'], **changes}
    merged.pop('seeds', None)
    return merged


def run_config(experiment: dict[str, Any], changes: dict[str, Any]) -> Config:
    """Return the config of a run, with its schedule and validations scaled to the experiment's iterations.

    Raises:
        ValueError: If the schedule does not count iterations or does not end with the training.
    """
    changes = all_changes(experiment, changes)
    cfg, iterations = Config.fromfile(changes.pop('config')), changes.pop('iterations')
    merge_options(cfg, changes)
    ends = [each.end for each in cfg.param_scheduler]
    if cfg.train_cfg.get('max_iters') != max(ends):
        raise ValueError(f'{cfg.filename}: the schedule must count iterations and end with the training')
    scale = iterations / max(ends)
    for schedule in cfg.param_scheduler:
        schedule.begin = round(schedule.begin * scale)
        schedule.end = max(round(schedule.end * scale), schedule.begin + 1)
    quarter = -(-iterations // 4)
    cfg.train_cfg.update(max_iters=iterations, val_interval=quarter)
    cfg.default_hooks.checkpoint.update(interval=quarter, max_keep_ckpts=1, save_best=None)
    cfg.default_hooks.logger.interval = max(1, iterations // 40)  # gives 40 points of the loss curve
    cfg.default_hooks.visualization.draw = False
    return cfg


def seeds_of(experiment: dict[str, Any], run: str) -> list[int]:
    return experiment['runs'][run].get('seeds', experiment['seeds'])


def call(tool: str, *arguments: object) -> int:
    """Run a tool of this repository and return the peak memory of its process in MiB, sampled every 0.5 s.

    Raises:
        ValueError: If the tool fails.
    """
    command = [sys.executable, str(TOOLS / tool), *map(str, arguments)]
    process, most = psutil.Popen(command), 0
    while process.poll() is None:
        with contextlib.suppress(psutil.NoSuchProcess):
            most = max(most, process.memory_info().rss)
        time.sleep(0.5)
    if process.returncode:
        raise ValueError(f'{tool} ended with exit status {process.returncode}: {" ".join(command)}')
    return most // 2**20


def write_text(path: Path, text: str) -> None:
    """Write a file atomically."""
    with replacing(path) as file:
        file.unfinished.write_text(text)


def train_and_test(cfg: Config, folder: Path, seed: int) -> Result:
    """Train and test one seed of a run.

    Returns:
        Test metrics, metrics of the last validation as 'val/NAME', time and memory of training, the machine,
        and the curves of the loss and of the validation metrics.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = folder.parent / CONFIG
    write_text(config, cfg.pretty_text)
    resume = ['--resume'] if (folder / 'last_checkpoint').exists() else []
    memory = call('train.py', config, '--work-dir', folder, '--seed', seed, *resume)
    checkpoint = (folder / 'last_checkpoint').read_text()
    call('test.py', config, checkpoint, '--work-dir', folder / 'test')
    (*_, log) = sorted(folder.glob('test/*/*.json'))
    records = [record for record in read_records(folder) if 'loss' in record]
    curves = read_run(folder)
    return dict(
        json.loads(log.read_text()),
        **{f'val/{name}': curve[max(curve)] for name, curve in curves.items() if name != 'loss'},
        seconds_per_iteration=statistics.median(record['time'] for record in records),
        memory=max((record['memory'] for record in records if 'memory' in record), default=memory),
        machine=machine(torch.device('cuda' if torch.cuda.is_available() else 'cpu')),
        curves=curves,
    )


def read_record(out: Path, experiment: dict[str, Any]) -> Results:
    """Read the results that earlier calls wrote to a folder.

    Raises:
        ValueError: If the experiment now defines one of the runs differently.
    """
    if not (out / RECORD).exists():
        return {}
    record = json.loads((out / RECORD).read_text())
    now = json.loads(json.dumps(experiment))  # tuples become lists, as in the record
    for run in record['results']:
        old = all_changes(record, record['runs'][run])
        new = all_changes(now, now['runs'][run]) if run in now['runs'] else None
        if old != new:
            raise ValueError(
                f'{out / RECORD} has {run} with {old}, but the experiment has {new}: give another --out'
            )
    return record['results']


def write_record(out: Path, experiment: dict[str, Any], results: Results) -> None:
    """Write results.json, table.md and loss.png, with the results that other calls have written to them."""
    with FileLock(out / '.lock'):
        recorded = read_record(out, experiment)
        merged = {run: {**recorded.get(run, {}), **results.get(run, {})} for run in experiment['runs']}
        merged = {run: dict(sorted(seeds.items())) for run, seeds in merged.items() if seeds}
        write_text(out / RECORD, json.dumps(dict(experiment, results=merged), indent=1) + '\n')
        write_text(out / 'table.md', report(experiment, merged) + '\n')
        rows = []
        for run, seeds in merged.items():
            # Old records have no curves.
            curves = [seed['curves']['loss'] for seed in seeds.values() if 'curves' in seed]
            if curves:
                curves = [{int(at): loss for at, loss in curve.items()} for curve in curves]
                rows.append(curve_row(run, 'loss', curves))
        if rows:
            plot(rows).savefig(out / 'loss.png', dpi=110)


def report(experiment: dict[str, Any], results: Results) -> str:
    """Format the results as a Markdown table, followed by the time and by the runs that are missing."""
    missing, seconds = [], 0.0
    for run in experiment['runs']:
        seeds = [str(seed) for seed in seeds_of(experiment, run) if str(seed) not in results.get(run, {})]
        if seeds:
            missing.append(f'{run} (seed {", ".join(seeds)})')
        iterations = all_changes(experiment, experiment['runs'][run])['iterations']
        seconds += sum(each['seconds_per_iteration'] * iterations for each in results.get(run, {}).values())
    parts = [table(results, experiment['metrics']), f'Training time: {seconds / 3600:.1f} hours.']
    return '\n\n'.join(parts + ([f'Not run yet: {"; ".join(missing)}.'] if missing else []))


def table(results: Results, metrics: list[str]) -> str:
    """Format the mean, minimum and maximum over seeds of every run as a Markdown table."""
    rows = []
    for run, by_seed in results.items():
        seeds = list(by_seed.values())
        cells = [run, str(len(seeds))]
        for metric in metrics:
            if metric not in seeds[0]:
                raise ValueError(f'{run} has no metric {metric!r}; it has {", ".join(sorted(seeds[0]))}')
            values = [seed[metric] for seed in seeds]
            spread = f' ({min(values):.4g} to {max(values):.4g})' if len(values) > 1 else ''
            cells.append(f'{statistics.mean(values):.4g}{spread}')
        cells.append(f'{statistics.median(seed["seconds_per_iteration"] for seed in seeds):.2f}')
        cells.append(f'{max(seed["memory"] for seed in seeds):.0f}')
        rows.append(cells)
    return markdown_table(['run', 'seeds', *metrics, 's / iteration', 'memory, MiB'], rows)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('experiment', type=Path, metavar='EXPERIMENT')
    parser.add_argument('--runs', nargs='+', metavar='RUN', help='runs to execute [all]')
    parser.add_argument(
        '--seeds', nargs='+', type=int, metavar='SEED', help="seeds to execute [the experiment's]"
    )
    parser.add_argument('--work-dir', type=Path, default=Path('work_dirs/experiments'), help='[%(default)s]')
    parser.add_argument('--out', type=Path, help='folder for the table, the results and the plot')
    args = parser.parse_args()
    with errors_in_one_line():
        experiment = read_experiment(args.experiment)
        runs = experiment['runs']
        if unknown := set(args.runs or ()) - set(runs):
            raise ValueError(f'no run {", ".join(sorted(unknown))}; there are {", ".join(runs)}')
        configs = {name: run_config(experiment, runs[name]) for name in args.runs or runs}
        results: Results = {}
        if args.out:
            check_writable(args.out)
            results = read_record(args.out, experiment)
        folders = {name: args.work_dir / args.experiment.stem / name.replace(' ', '_') for name in configs}
        jobs = [
            (name, seed)
            for name in configs
            for seed in args.seeds or seeds_of(experiment, name)
            if str(seed) not in results.get(name, {})
        ]
        for name in dict(jobs):
            config = folders[name] / CONFIG
            if config.exists() and config.read_text() != configs[name].pretty_text:
                raise ValueError(
                    f'{folders[name]} has a run with another config: remove it or give another --work-dir'
                )
        for name, seed in jobs:
            folder = folders[name] / f'seed{seed}'
            done = folder / 'result.json'
            if not done.exists():
                write_text(done, json.dumps(train_and_test(configs[name], folder, seed), indent=1) + '\n')
            results.setdefault(name, {})[str(seed)] = json.loads(done.read_text())
            print(f'\n{report(experiment, results)}\n', flush=True)
            if args.out:
                write_record(args.out, experiment, results)
        if not jobs:
            print(report(experiment, results))
            if args.out:  # its metrics or seeds may have changed
                write_record(args.out, experiment, results)


if __name__ == '__main__':
    main()
