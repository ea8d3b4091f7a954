"""Curves of the loss and of validation metrics over iterations, from MMEngine's logs.

``analyze_logs.py`` of MMDetection and MMSegmentation are scripts that draw one run of their own tasks; this
compares several runs of any task, with seeds.
"""

import itertools
import json
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any, Iterator, Sequence

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from revcol_mm.config.recorded import read_run_config
from revcol_mm.markdown_table import markdown_table

Curve = dict[int, float]  # iteration to value
NOT_METRICS = ('time', 'data_time', 'step')


def read_records(work_dir: Path) -> Iterator[dict[str, Any]]:
    """Yield the records of all logs of a work dir in the order of time; every resume starts a new log."""
    for log in sorted(work_dir.glob('*/vis_data/scalars.json')):
        yield from map(json.loads, log.read_text().splitlines())


def read_run(work_dir: Path) -> dict[str, Curve]:
    """Read the curves of the loss and of all validation metrics of a work dir, by name.

    Iterations that a resumed run repeated replace the earlier ones.
    """
    curves, end_of_epoch = defaultdict(dict), {}
    for record in read_records(work_dir):
        if 'loss' in record:
            curves['loss'][record['step']] = record['loss']
            end_of_epoch[record.get('epoch')] = record['step']
        elif 'iter' not in record:  # validation; in epoch-based training its step is the epoch
            step = end_of_epoch.get(record['step'], record['step'])
            for name in record:
                if name not in NOT_METRICS:
                    curves[name][step] = record[name]
    return dict(curves)


def best_metric(work_dir: Path, curves: dict[str, Curve]) -> list[str]:
    """Return the metric that selects the best checkpoint in a list, which is empty without validation."""
    logged = [name for name in curves if name != 'loss']
    hooks = read_run_config(work_dir).get('default_hooks', {})
    named = hooks.get('checkpoint', {}).get('save_best')
    return [named] if named in logged else logged[:1]  # 'auto' selects the first metric


def summarise(folder: Path, metrics: list[str] | None) -> list[dict]:
    """Summarise the loss and validation metrics of a run over its seeds; see :func:`curve_row`.

    Args:
        folder: A work dir, or a folder with the work dirs of several seeds.
        metrics: Names of validation metrics; those that a seed lacks are ignored. None for the metric that
            selects the best checkpoint.

    Raises:
        ValueError: If the run has no log or none of the metrics, or its seeds have no iteration in common.
    """
    found = {path: run for path in (folder, *sorted(folder.glob('*/'))) if (run := read_run(path))}
    if not found:
        raise ValueError(f'{folder} has no */vis_data/scalars.json, which MMEngine writes when it trains')
    work_dirs, runs = zip(*found.items())
    logged = sorted(set.intersection(*(set(run) for run in runs)))
    chosen = [name for name in metrics or best_metric(work_dirs[0], runs[0]) if name in logged]
    if metrics and not chosen:
        raise ValueError(f'{folder} has no metric {" or ".join(metrics)}; it has {", ".join(logged)}')
    name = folder.resolve().name
    return [curve_row(name, each, [run.get(each, {}) for run in runs]) for each in ['loss', *chosen]]


def curve_row(run: str, metric: str, curves: Sequence[Curve]) -> dict:
    """Return the mean, minimum and maximum of a metric over seeds, at the iterations that all seeds have.

    Raises:
        ValueError: If there is no such iteration.
    """
    steps = sorted(set.intersection(*map(set, curves)))
    if not steps:
        raise ValueError(f'the seeds of {run} have no iteration with {metric} in common')
    values = [[curve[step] for curve in curves] for step in steps]
    return dict(
        run=run,
        metric=metric,
        seeds=len(curves),
        steps=steps,
        mean=[statistics.mean(v) for v in values],
        low=[min(v) for v in values],
        high=[max(v) for v in values],
        last=values[-1],
    )


def table(rows: list[dict]) -> str:
    """Format the last validation of every run, the mean over seeds and every seed, as a Markdown table."""
    cells = []
    for row in rows:
        if row['metric'] != 'loss':
            seeds = ', '.join(f'{value:.4g}' for value in row['last']) if row['seeds'] > 1 else ''
            cells.append([row['run'], row['steps'][-1], row['metric'], f'{row["mean"][-1]:.4g}', seeds])
    return markdown_table(['run', 'iterations', 'metric', 'last', 'seeds'], cells)


def plot(rows: list[dict]) -> Figure:
    """Draw the loss and every metric over iterations, each in a panel of its own."""
    metrics = list(dict.fromkeys(row['metric'] for row in rows))
    runs = list(dict.fromkeys(row['run'] for row in rows))
    colour_cycle = colormaps['tab10' if len(runs) <= 10 else 'tab20'].colors
    colours = dict(zip(runs, itertools.cycle(colour_cycle)))
    columns = min(3, len(metrics))
    num_rows = -(-len(metrics) // columns)
    legend_width = 0.8 + 0.07 * max(map(len, runs)) if len(runs) > 1 else 0  # inches
    figure = Figure(figsize=(4.6 * columns + legend_width, 3.8 * num_rows), layout='constrained')
    figure.get_layout_engine().set(h_pad=0.1)
    axes = figure.subplots(num_rows, columns, squeeze=False)
    for axis in axes.flat[len(metrics) :]:
        axis.remove()
    for axis, metric in zip(axes.flat, metrics):
        for row in rows:
            if row['metric'] == metric:
                draw(axis, row, colours[row['run']])
        axis.set_title(metric)
        axis.set_xlabel('iterations')
        axis.grid(alpha=0.3)
        if metric == 'loss':
            axis.set_yscale('log')
        else:
            lowest = min(value for row in rows if row['metric'] == metric for value in row['low'])
            axis.set_ylim(bottom=min(0, lowest))  # COCO's metrics are -1 if there are no such objects
    if len(runs) == 1:
        figure.suptitle(runs[0])
    else:
        lines = [Line2D([], [], color=colours[run]) for run in runs]
        figure.legend(lines, runs, loc='outside right upper', fontsize='small')
    return figure


def draw(axis: Axes, row: dict, colour: tuple[float, float, float]) -> None:
    """Draw one curve: the mean over seeds, with a band from the minimum to the maximum."""
    marker = '' if len(row['steps']) > 15 else 'o'
    axis.plot(row['steps'], row['mean'], color=colour, marker=marker, markersize=4, label=row['run'])
    if row['seeds'] > 1:
        axis.fill_between(row['steps'], row['low'], row['high'], color=colour, alpha=0.2)
