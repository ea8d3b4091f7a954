"""Summarise a training on a single HTML page, which needs no server or network.

    python tools/analysis/run_report.py work_dirs/upernet_revcol_t_ade20k

writes report.html to the work dir: progress, time and memory; metrics and their curves; the statistics of
ColumnStatisticsHook; the latest pictures of predictions; environment and config. It reads the logs of the
training and needs neither data nor checkpoints.
"""

import argparse
import base64
import re
import statistics
from collections import defaultdict
from datetime import datetime, timedelta
from io import BytesIO
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from mmengine.config import Config
from PIL import Image

from revcol_mm.analysis.learning_curves import curve_row, plot, read_records, read_run
from revcol_mm.config.command_line import check_writable
from revcol_mm.config.recorded import read_run_config
from revcol_mm.errors import errors_in_one_line

TIME = re.compile(r'^(\d{4}/\d\d/\d\d \d\d:\d\d:\d\d) - ', re.M)
PICTURE_SIDE = 640  # pixels; larger pictures are reduced
COLUMN_STATISTICS = ('feature_variance', 'gradient_norm', 'min_abs_alpha')


def read_start(folder: Path) -> dict:
    """Read the log of one start of a run; a resumed run has several.

    Args:
        folder: Folder of the start, with the time as its name.

    Returns:
        'began' and 'ended' as datetimes, and 'environment', the environment that MMEngine logged.
    """
    text = ''.join(log.read_text(errors='replace') for log in folder.glob('*.log'))
    times = [datetime.strptime(time, '%Y/%m/%d %H:%M:%S') for time in TIME.findall(text)]
    lines = re.findall(r'^    ([^:\n]+): (.*)$', text.partition('Config:')[0], re.M)
    environment = {name: value for name, value in lines if name != 'PyTorch compiling details'}
    return dict(began=min(times, default=None), ended=max(times, default=None), environment=environment)


def summarise(work_dir: Path, starts: list[dict], cfg: Config) -> dict[str, str]:
    """Return the progress, time, memory and environment of a run as text."""
    records = [record for record in read_records(work_dir) if 'loss' in record]
    last, limits = records[-1], cfg.get('train_cfg', {})
    progress = f'iteration {last["step"]}'
    if 'max_iters' in limits:
        progress += f' of {limits["max_iters"]}'
    elif 'max_epochs' in limits and 'epoch' in last:
        progress += f', epoch {last["epoch"]} of {limits["max_epochs"]}'
    summary = {'progress': progress}

    times = [start for start in starts if start['began']]
    if times:
        duration = sum((start['ended'] - start['began'] for start in times), timedelta())
        summary['began'] = f'{times[0]["began"]}'
        summary['duration'] = f'{duration}, in {len(times)} starts' if len(times) > 1 else f'{duration}'
    seconds = statistics.median(record['time'] for record in records)
    waiting = statistics.median(record['data_time'] / record['time'] for record in records)
    summary['time of an iteration'] = f'{seconds:.3g} s, {waiting:.0%} of it waiting for data (medians)'
    peaks = defaultdict(float)
    for record in read_records(work_dir):
        for name in ('memory', 'peak_memory_mib/cuda', 'peak_memory_mib/process'):
            peaks[name] = max(peaks[name], record.get(name, 0))
    gpu, process = max(peaks['memory'], peaks['peak_memory_mib/cuda']), peaks['peak_memory_mib/process']
    logged = {f'{gpu:.0f} MiB allocated on the GPU': gpu, f'{process:.0f} MiB, the whole process': process}
    summary['peak memory'] = '; '.join(text for text, peak in logged.items() if peak) or (
        'not logged: without a GPU only ColumnStatisticsHook logs it'
    )
    environment = starts[-1]['environment']
    gpus = [f'{name}: {value}' for name, value in environment.items() if re.match(r'GPU [\d,]+$', name)]
    summary['device'] = '; '.join(gpus) or 'CPU'
    for name in ('GPU number', 'seed', 'git_commit', 'command'):
        label = {'GPU number': 'processes', 'git_commit': 'git commit'}.get(name, name)
        summary[label] = environment.get(name, 'not logged')
    return summary


def metric_table(curves: dict) -> list[dict]:
    """Return the last and the best value of every metric (the highest) and of the loss (the lowest)."""
    rows = []
    for name, curve in curves.items():
        steps = sorted(curve)
        best = (min if name == 'loss' else max)(steps, key=curve.get)
        rows.append(dict(name=name, step=steps[-1], last=curve[steps[-1]], best_step=best, best=curve[best]))
    return rows


def plot_columns(work_dir: Path) -> Figure | None:
    """Draw the statistics of ColumnStatisticsHook over iterations; return None if there are none."""
    curves = defaultdict(lambda: defaultdict(dict))
    for record in read_records(work_dir):
        for name, value in record.items():
            statistic, _, column = name.partition('/')
            if statistic in COLUMN_STATISTICS:
                curves[statistic][column][record['step']] = value
    if not curves:
        return None
    figure = Figure(figsize=(4.6 * len(curves) + 0.8, 3.8), layout='constrained')
    axes = figure.subplots(1, len(curves), squeeze=False)[0]
    columns = list(curves['feature_variance'])
    colours = ScalarMappable(Normalize(0, max(len(columns) - 1, 1)), colormaps['viridis'])
    for axis, statistic in zip(axes, curves):
        for column, curve in curves[statistic].items():
            steps = sorted(curve)
            colour = colours.to_rgba(columns.index(column))
            axis.plot(steps, [curve[step] for step in steps], color=colour, marker='.')
        axis.set_title({'min_abs_alpha': 'smallest |alpha|'}.get(statistic, statistic.replace('_', ' ')))
        axis.set_xlabel('iterations')
        axis.grid(alpha=0.3)
        if statistic != 'min_abs_alpha':
            axis.set_yscale('log')
    figure.colorbar(colours, ax=axes, label='column', ticks=range(0, len(columns), -(-len(columns) // 8)))
    return figure


def last_pictures(work_dir: Path, limit: int) -> list[dict[str, str]]:
    """Return 'name' and 'source', a data URI, of the latest pictures that the visualizer stored."""

    def step(path: Path) -> int:
        return int(path.stem.rpartition('_')[2])

    paths = [path for path in work_dir.glob('*/vis_data/vis_image/*.png') if re.search(r'_\d+$', path.stem)]
    paths = sorted(paths, key=lambda path: (-step(path), path.name))[:limit]
    pictures = []
    for path in paths:
        try:
            picture = Image.open(path).convert('RGB')
        except (OSError, Image.DecompressionBombError) as error:
            raise ValueError(f'cannot read {path}: {error}') from error
        picture.thumbnail((PICTURE_SIDE, PICTURE_SIDE))
        data = BytesIO()
        picture.save(data, 'WEBP', quality=85)
        name = f'{path.stem.rpartition("_")[0]}, iteration {step(path)}'
        pictures.append(dict(name=name, source=data_uri('image/webp', data.getvalue())))
    return pictures


def data_uri(media_type: str, data: bytes) -> str:
    return f'data:{media_type};base64,{base64.b64encode(data).decode()}'


def embed(figure: Figure) -> str:
    """Convert a figure to an SVG image in a data URI."""
    data = BytesIO()
    figure.savefig(data, format='svg', metadata={'Date': None})
    return data_uri('image/svg+xml', data.getvalue())


def report(work_dir: Path, num_pictures: int) -> str:
    """Return the HTML page.

    Raises:
        ValueError: If the folder has no log of a training.
    """
    curves = read_run(work_dir)
    if 'loss' not in curves:
        raise ValueError(f'{work_dir} has no */vis_data/scalars.json, which MMEngine writes when it trains')
    starts = [read_start(log.parents[1]) for log in sorted(work_dir.glob('*/vis_data/scalars.json'))]
    cfg = read_run_config(work_dir)
    title = '/'.join(work_dir.resolve().parts[-2:])
    # COCO's metrics are -1 if there are no such objects.
    drawn = {name: curve for name, curve in curves.items() if max(curve.values()) >= 0}
    columns = plot_columns(work_dir)
    templates = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined
    )
    return templates.get_template('run_report.html').render(
        title=title,
        summary=summarise(work_dir, starts, cfg),
        metrics=metric_table(curves),
        curves=embed(plot([curve_row(title, name, [curve]) for name, curve in drawn.items()])),
        columns=embed(columns) if columns else None,
        pictures=last_pictures(work_dir, num_pictures),
        checkpoints=sorted(path.name for path in work_dir.glob('*.pth')),
        environment=starts[-1]['environment'],
        config=cfg.text,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument('work_dir', type=Path, metavar='WORK_DIR', help='work dir of a training')
    parser.add_argument('--out', type=Path, metavar='FILE', help='[WORK_DIR/report.html]')
    parser.add_argument(
        '--num-pictures',
        type=int,
        default=12,
        metavar='N',
        help='number of the latest pictures of predictions [12]',
    )
    args = parser.parse_args()
    with errors_in_one_line():
        page = report(args.work_dir, args.num_pictures)
        out = args.out or args.work_dir / 'report.html'
        if out.is_dir():
            raise ValueError(f'--out must be a file, but {out} is a folder')
        check_writable(out.parent)
    out.write_text(page, encoding='utf-8')
    print(f'wrote {out}, {out.stat().st_size / 2**20:.1f} MiB')


if __name__ == '__main__':
    main()
