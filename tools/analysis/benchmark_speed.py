"""Measure the speed of training and inference of a config's model: images per second, step time and memory.

    python tools/analysis/benchmark_speed.py configs/upernet_revcol_t_ade20k.py --compile --out
    work_dirs/speed

times the same steps as the runner makes: data preprocessor, loss, backward and optimizer in training; data
preprocessor, prediction and post-processing in inference. It prints medians with quartiles and writes them to
benchmark_speed.json and benchmark_speed.png. Variants are timed in turn, so that a machine that slows down
slows all of them. Memory is the peak of one step beyond weights and optimizer state.

Images and labels are random, of one shape, and the same for every variant. No data set is needed; loading and
augmentation are not measured. Weights are random, too. Steps whose cost depends on predictions, such as
non-maximum suppression, may take longer with a trained model. If a variant fails, its error is reported and
the exit status is 1. Compilation takes minutes and is not part of the times.
"""

import argparse
import sys
from itertools import product
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from mmengine.config import Config
from mmengine.registry import DefaultScope

from revcol_mm.analysis.command_line import (
    add_device_argument,
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
from revcol_mm.markdown_table import markdown_table
from revcol_mm.testing import peak_bytes

MODES = ('training', 'inference')


def choose_variants(args: argparse.Namespace, cfg: Config) -> list[Variant]:
    """Return every variant that the command line asks for.

    Raises:
        ValueError: If a number is not positive or no batch size is known.
    """
    if min(args.repeats, *(args.batch_sizes or [1]), *(args.shape or [1])) < 1:
        raise ValueError('--repeats, --batch-sizes and --shape must be at least 1')
    variants = []
    for mode in args.modes:
        loader = cfg.get('train_dataloader' if mode == 'training' else 'test_dataloader') or {}
        batch_sizes = args.batch_sizes or [loader.get('batch_size')]
        if None in batch_sizes:
            raise ValueError(f'{args.config} has no batch size for {mode}: give --batch-sizes')
        executions = (False, True) if args.compile else (False,)
        variants += [Variant(mode, *how) for how in product(args.precisions, executions, batch_sizes)]
    return variants


def measure(args: argparse.Namespace, cfg: Config) -> dict:
    """Time all variants and return the report."""
    variants = choose_variants(args, cfg)
    device = pick_device(args.device)
    if 'fp16' in args.precisions and device.type != 'cuda':
        raise ValueError('fp16 requires a GPU for loss scaling; use bf16 on a CPU')
    height, width = args.shape or default_shape(cfg)
    if cfg.default_scope == 'mmseg':
        width = width if args.shape else height  # training crops, not the wide images for FLOPs
    torch.backends.cudnn.benchmark = cfg.get('env_cfg', {}).get('cudnn_benchmark', False)
    model = init_model(cfg, device=str(device))
    if cfg.default_scope == 'mmseg':
        model.data_preprocessor.size = (height, width)  # otherwise it pads images to the crop
        model.data_preprocessor.size_divisor = None

    def make_batch(batch_size: int) -> dict:
        return synthetic_batch(model, cfg.default_scope, batch_size, height, width)

    rows = {}
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        stepper = Stepper(model, cfg, make_batch)
        steps = {variant: stepper.step(variant) for variant in variants}
        for variant in variants:
            row = rows[variant] = variant._asdict()
            print(f'first step: {variant.mode}, {describe(row)}', file=sys.stderr)
            try:
                for _ in range(2):  # the first step compiles and allocates the optimizer state
                    steps[variant]()
                row['peak_mib'] = peak_bytes(steps[variant], device) / 2**20
            except Exception as error:  # any error: the other variants may still run
                row['error'] = f'{type(error).__name__}: {error}'.splitlines()[0]
                del steps[variant]
        for variant, seconds in time_in_turn(steps, args.repeats, device, warm_up=2).items():
            low, median, high = np.quantile(seconds, [0.25, 0.5, 0.75]).tolist()
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
    """Describe a variant without its mode."""
    return f'{row["precision"]}, {"compiled" if row["compiled"] else "eager"}, batch {row["batch_size"]}'


def three_digits(value: float) -> str:
    """Format a number with three significant digits and no exponent, which '.3g' has from 1000 on."""
    return f'{float(f"{value:.3g}"):g}'


def table(report: dict) -> str:
    """Format the report as a Markdown table."""
    heads = ['mode', 'variant', 'images/s', 'step, ms', 'quartiles, ms', 'memory, MiB']
    rows = []
    for row in report['rows']:
        cells = [row['mode'], describe(row)]
        if 'error' in row:
            rows.append([*cells, row['error']])
            continue
        low, median, high = (three_digits(1000 * row['seconds'][key]) for key in ('low', 'median', 'high'))
        speed = three_digits(row['images_per_second'])
        rows.append([*cells, speed, median, f'{low} to {high}', f'{row["peak_mib"]:.0f}'])
    return markdown_table(heads, rows)


def plot(report: dict) -> Figure:
    """Draw images per second of every variant with quartiles."""
    rows = [row for row in report['rows'] if 'error' not in row]
    modes = list(dict.fromkeys(row['mode'] for row in rows))
    height = 1.2 + 0.35 * max((sum(row['mode'] == mode for row in rows) for mode in modes), default=0)
    figure = Figure(figsize=(5 * len(modes) + 1, height), layout='constrained')
    axes = figure.subplots(1, len(modes) or 1, squeeze=False)[0]
    for axis, mode in zip(axes, modes):
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
    return figure


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument('--modes', nargs='+', choices=MODES, default=MODES, help='[both]')
    parser.add_argument(
        '--precisions',
        nargs='+',
        choices=DTYPES,
        default=('fp32', 'bf16'),
        help='precisions of autocast [fp32 bf16]',
    )
    parser.add_argument(
        '--compile', action='store_true', help='also time the model compiled by torch.compile'
    )
    parser.add_argument(
        '--batch-sizes',
        nargs='+',
        type=int,
        metavar='B',
        help="batch sizes [those of the config's data loaders]",
    )
    parser.add_argument(
        '--shape',
        nargs=2,
        type=int,
        metavar=('H', 'W'),
        help='size of the images [detectors: 800 x 1280, otherwise the training crop]',
    )
    parser.add_argument('--repeats', type=int, default=10, help='timed steps of each variant [10]')
    add_device_argument(parser)
    with errors_in_one_line():
        args, cfg = read_arguments(parser)
        report = measure(args, cfg)
    print(f'{report["shape"][0]} x {report["shape"][1]}, {report["machine"]}\n\n{table(report)}')
    write_report(report, args.out, 'benchmark_speed', plot)
    failed = sum('error' in row for row in report['rows'])
    if failed:
        sys.exit(f'error: {failed} of {len(report["rows"])} variants failed')


if __name__ == '__main__':
    main()
