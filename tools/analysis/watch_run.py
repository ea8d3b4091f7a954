"""Run a command and record its use of resources, to find out whether a long training leaks any.

    python tools/analysis/watch_run.py --folder work_dirs/run --out work_dirs/watch -- \\
        python tools/train.py configs/upernet_revcol_nano_sample.py --work-dir work_dirs/run

samples memory, threads, open files, worker processes and the size of a folder. It prints how each of them
changed and writes the samples as watch_run.json and as a plot. The exit status is that of the command, or 1
if it succeeded within 10 intervals.
"""

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import psutil
from matplotlib.figure import Figure

from revcol_mm.config.command_line import check_writable
from revcol_mm.errors import errors_in_one_line
from revcol_mm.markdown_table import markdown_table

QUANTITIES = {
    'memory': 'memory of the process, MiB',
    'worker_memory': 'memory of its workers, MiB',
    'threads': 'threads',
    'files': 'open files',
    'workers': 'worker processes',
    'disk': 'size of the folder, MiB',
}


def folder_size(folder: Path | None) -> float:
    """Return the size of all files in a folder in MiB; 0 without a folder."""
    size = 0
    for path in folder.rglob('*') if folder else ():
        with contextlib.suppress(FileNotFoundError):  # the file was just replaced
            size += path.stat().st_size
    return size / 2**20


def memory(worker: psutil.Process) -> int:
    """Return the memory of a process in bytes; 0 if it has just ended."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return worker.memory_info().rss
    return 0


def sample(process: psutil.Process, folder: Path | None) -> dict[str, float]:
    """Sample all quantities.

    Raises:
        psutil.NoSuchProcess: If the process has ended in the meantime.
    """
    workers = process.children(recursive=True)
    with process.oneshot():
        return dict(
            memory=process.memory_info().rss / 2**20,
            worker_memory=sum(map(memory, workers)) / 2**20,
            threads=process.num_threads(),
            files=process.num_fds() if psutil.POSIX else process.num_handles(),
            workers=len(workers),
            disk=folder_size(folder),
        )


def watch(command: list[str], folder: Path | None, interval: float) -> tuple[int, list[dict[str, float]]]:
    """Run a command and return its exit status and samples at intervals in seconds."""
    started, samples = time.monotonic(), []
    running = subprocess.Popen(command)
    process = psutil.Process(running.pid)
    while running.poll() is None:
        with contextlib.suppress(psutil.NoSuchProcess):
            taken = sample(process, folder)
            samples.append(dict(seconds=round(time.monotonic() - started, 1), **taken))
        time.sleep(interval)
    return running.returncode, samples


def changes(samples: list[dict[str, float]]) -> dict[str, tuple[float, float]]:
    """Return the medians of every quantity in the second and in the last fifth of the run.

    The first fifth is left out, because memory still grows while a training starts.
    """
    fifth = len(samples) // 5
    parts = samples[fifth : 2 * fifth], samples[-fifth:]
    return {name: tuple(statistics.median(s[name] for s in part) for part in parts) for name in QUANTITIES}


def plot(samples: list[dict[str, float]]) -> Figure:
    figure = Figure(figsize=(13, 6.4), layout='constrained')
    axes = figure.subplots(2, 3)
    for axis, (name, title) in zip(axes.flat, QUANTITIES.items()):
        axis.plot([s['seconds'] / 60 for s in samples], [s[name] for s in samples])
        axis.set_title(title)
        axis.set_xlabel('minutes')
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('command', nargs='+', help='command to run, after --')
    parser.add_argument('--folder', type=Path, help='folder whose size is sampled, such as the work dir')
    parser.add_argument('--interval', type=float, default=1.0, help='seconds between samples [1]')
    parser.add_argument('--out', type=Path, help='folder for watch_run.json and .png')
    args = parser.parse_args()
    if args.interval <= 0:
        parser.error(f'--interval must be more than 0 seconds, got {args.interval}')
    if args.out:
        with errors_in_one_line():
            check_writable(args.out)
    status, samples = watch(args.command, args.folder, args.interval)
    if len(samples) < 10:
        print(
            f'error: {len(samples)} samples, of which 10 are needed; the command failed or was too short',
            file=sys.stderr,
        )
        sys.exit(status or 1)
    rows = [
        [QUANTITIES[name], f'{before:.0f}', f'{after:.0f}']
        for name, (before, after) in changes(samples).items()
    ]
    print(markdown_table(['', 'second fifth of the run', 'last fifth'], rows))
    if args.out:
        (args.out / 'watch_run.json').write_text(json.dumps(samples) + '\n')
        plot(samples).savefig(args.out / 'watch_run.png', dpi=100)
    sys.exit(status)


if __name__ == '__main__':
    main()
