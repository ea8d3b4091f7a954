"""How fast does a config's model train and predict? Images per second, time of a step, and memory.

    python tools/analysis/benchmark_speed.py configs/upernet_revcol_t_ade20k.py --compile --out
    work_dirs/speed

times whole steps, as the runner makes them: data preprocessor, loss, backward and optimizer in training, data
preprocessor, prediction and post-processing in inference. It prints medians with quartiles, and writes them
as benchmark_speed.json and benchmark_speed.png. Variants are timed in turn, so that a machine that slows down
slows all of them. Memory is the peak of one step beyond weights and the optimizer's state.

Images and labels are random, all of one shape and the same for every variant: no data set is needed, and
loading and augmentation, which have other bottlenecks, do not count. Weights are random, too; what depends on
them, as non-maximum suppression does on the number of boxes found, may take longer in a trained model. A
variant that cannot run is reported as such, and the exit status is 1. Compiling takes minutes; it is not in
the times.
"""

import argparse
import sys
from itertools import product
from pathlib import Path

import numpy as np
import torch
from matplotlib import pyplot as plt
from mmengine.config import Config
from mmengine.registry import DefaultScope

from revcol_mm.analysis.command_line import (
    make_parser,
    read_arguments,
    write_report,
)
from revcol_mm.analysis.complexity import default_shape
from revcol_mm.analysis.machine import machine
from revcol_mm.analysis.speed import DTYPES, Stepper, Variant, time_in_turn
from revcol_mm.analysis.synthetic_batch import synthetic_batch
from revcol_mm.apis import init_model, pick_device
from revcol_mm.errors import errors_in_one_line
from revcol_mm.testing import peak_bytes

MODES = ('training', 'inference')


def choose_variants(args: argparse.Namespace, cfg: Config) -> list[Variant]:
    """Every variant that the command line asks for.

    Raises:
        ValueError: If a number is not positive, or there is no size of a batch.
    """
    if min(args.repeats, *(args.batch_sizes or [1]), *(args.shape or [1])) < 1:
        raise ValueError('--repeats, --batch-sizes and --shape start at 1')
    variants = []
    for mode in args.modes:
        loader = cfg.get('train_dataloader' if mode == 'training' else 'test_dataloader') or {}
        batch_sizes = args.batch_sizes or [loader.get('batch_size')]
        if None in batch_sizes:
            raise ValueError(f"--batch-sizes is needed: {args.config} does not tell one of {mode}'s")
        executions = (False, True) if args.compile else (False,)
        variants += [Variant(mode, *how) for how in product(args.precisions, executions, batch_sizes)]
    return variants


def measure(args: argparse.Namespace, cfg: Config) -> dict:
    """Time all variants; returns the report."""
    variants = choose_variants(args, cfg)
    device = pick_device(args.device)
    if 'fp16' in args.precisions and device.type != 'cuda':
        raise ValueError('fp16 scales its loss on a GPU alone; on a CPU use bf16')
    height, width = args.shape or default_shape(cfg)
    if cfg.default_scope == 'mmseg':
        width = width if args.shape else height  # crops, not the wide images that FLOPs are counted on
    torch.backends.cudnn.benchmark = cfg.get('env_cfg', {}).get('cudnn_benchmark', False)
    model = init_model(cfg, device=str(device))
    if cfg.default_scope == 'mmseg':
        model.data_preprocessor.size = (height, width)  # else smaller images are padded to the crop

    def make_batch(batch_size: int) -> dict:
        return synthetic_batch(model, cfg.default_scope, batch_size, height, width)

    rows = {}
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        stepper = Stepper(model, cfg, make_batch)
        steps = {variant: stepper.step(variant) for variant in variants}
        for variant in variants:
            print(f'first step: {variant}', file=sys.stderr)
            row = rows[variant] = variant._asdict()
            try:
                for _ in range(2):  # the first one compiles, and makes the optimizer's state
                    steps[variant]()
                row['peak_mib'] = peak_bytes(steps[variant], device) / 2**20
            except Exception as error:  # of whatever kind: other variants may run
                row['error'] = f'{type(error).__name__}: {error}'.splitlines()[0]
                del steps[variant]
        for variant, measurement in time_in_turn(steps, args.repeats).items():
            low, median, high = np.quantile(measurement.times, [0.25, 0.5, 0.75]).tolist()
            rows[variant].update(
                seconds=dict(median=median, low=low, high=high),
                images_per_second=variant.batch_size / median,
            )
    return dict(
        config=args.config,
        machine=machine(device),
        shape=[height, width],
        repeats=args.repeats,
        rows=list(rows.values()),
    )


def describe(row: dict) -> str:
    """A variant in words, without its mode."""
    return f'{row["precision"]}, {"compiled" if row["compiled"] else "eager"}, batch {row["batch_size"]}'


def three_digits(value: float) -> str:
    """Without an exponent, which 'g' alone writes from 1000 on."""
    return f'{float(f"{value:.3g}"):g}'


def table(report: dict) -> str:
    """The report as a Markdown table."""
    lines = [
        '| mode | variant | images/s | step, ms | quartiles, ms | memory, MiB |',
        '|---|---|---|---|---|---|',
    ]
    for row in report['rows']:
        start = f'| {row["mode"]} | {describe(row)} |'
        if 'error' in row:
            lines.append(f'{start} {row["error"]} ||||')
            continue
        low, median, high = (three_digits(1000 * row['seconds'][key]) for key in ('low', 'median', 'high'))
        lines.append(
            f'{start} {three_digits(row["images_per_second"])} | {median} | {low} to {high} | '
            f'{row["peak_mib"]:.0f} |'
        )
    return '\n'.join(lines)


def plot(report: dict, path: Path) -> None:
    """Draw images per second of every variant, with quartiles."""
    rows = [row for row in report['rows'] if 'error' not in row]
    modes = list(dict.fromkeys(row['mode'] for row in rows))
    height = 1.2 + 0.35 * max((sum(row['mode'] == mode for row in rows) for mode in modes), default=0)
    figure, axes = plt.subplots(
        1, len(modes) or 1, figsize=(5 * len(modes) + 1, height), layout='constrained', squeeze=False
    )
    for axis, mode in zip(axes[0], modes):
        chosen = [row for row in rows if row['mode'] == mode]
        speeds = np.array([row['images_per_second'] for row in chosen])
        low, high = (
            np.array([row['batch_size'] / row['seconds'][key] for row in chosen]) for key in ('high', 'low')
        )
        colours = [f'C{list(DTYPES).index(row["precision"])}' for row in chosen]
        labels = [describe(row) for row in chosen]
        axis.barh(labels, speeds, xerr=[speeds - low, high - speeds], color=colours, capsize=3)
        axis.invert_yaxis()
        axis.set_title(mode)
        axis.set_xlabel('images per second')
        axis.grid(alpha=0.3, axis='x')
    size = ' x '.join(map(str, report['shape']))
    figure.suptitle(f'{Path(report["config"]).stem}, {size}\n{report["machine"]}', fontsize='medium')
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument('--modes', nargs='+', choices=MODES, default=MODES, help='[both]')
    parser.add_argument(
        '--precisions', nargs='+', choices=DTYPES, default=('fp32', 'bf16'), help='of autocast [fp32 bf16]'
    )
    parser.add_argument(
        '--compile', action='store_true', help='time the model compiled by torch.compile, too'
    )
    parser.add_argument(
        '--batch-sizes',
        nargs='+',
        type=int,
        metavar='B',
        help="images in a batch [those of the config's loaders]",
    )
    parser.add_argument(
        '--shape',
        nargs=2,
        type=int,
        metavar=('H', 'W'),
        help='size of the images [800 x 1280 for detectors, else the training crop]',
    )
    parser.add_argument('--repeats', type=int, default=10, help='timed steps of each variant [10]')
    parser.add_argument('--device', help="such as 'cpu' or 'cuda:1' [a GPU where there is one]")
    with errors_in_one_line():
        args, cfg = read_arguments(parser)
        report = measure(args, cfg)
    print(f'{report["shape"][0]} x {report["shape"][1]}, {report["machine"]}\n\n{table(report)}')
    write_report(report, args.out, 'benchmark_speed')
    if args.out:
        plot(report, args.out / 'benchmark_speed.png')
    failed = sum('error' in row for row in report['rows'])
    if failed:
        sys.exit(f'error: {failed} of {len(report["rows"])} variants cannot run')


if __name__ == '__main__':
    main()
