"""Command-line arguments and report files shared by the analysis tools."""

import argparse
import json
from pathlib import Path
from typing import Any, Callable

from matplotlib.figure import Figure
from mmengine.config import Config

from revcol_mm.config.command_line import add_config_arguments, check_writable, read_config
from revcol_mm.config.options import merge_options


def make_parser(description: str) -> argparse.ArgumentParser:
    """Create a parser with CONFIG, --cfg-options and --out that keeps the line breaks of its description."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_config_arguments(parser)
    parser.add_argument('--out', type=Path, help='folder for the results as JSON and for figures')
    return parser


def add_device_argument(parser: argparse.ArgumentParser) -> None:
    """Add --device."""
    parser.add_argument('--device', help="such as 'cpu' or 'cuda:1' [a GPU if there is one]")


def add_image_arguments(parser: argparse.ArgumentParser, batch_size: int) -> None:
    """Add CHECKPOINT, --device, and the size, batching and order of images."""
    parser.add_argument('checkpoint', help='weights, file or URL')
    parser.add_argument(
        '--size',
        nargs=2,
        type=int,
        metavar=('H', 'W'),
        help='resize images to this height and width [classification: as in testing; otherwise a square '
        'with the length of the shorter side in testing, rounded to a multiple of 32]',
    )
    parser.add_argument('--batch-size', type=int, default=batch_size, metavar='B', help=f'[{batch_size}]')
    parser.add_argument('--seed', type=int, default=0, help='seed of the order of the images [0]')
    add_device_argument(parser)


def add_comparison_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --plain, a network to compare with, and --num-images."""
    parser.add_argument(
        '--plain',
        nargs=2,
        metavar=('CONFIG', 'CHECKPOINT'),
        help='network without columns to compare with on the same images',
    )
    parser.add_argument(
        '--num-images', type=int, metavar='N', help='largest number of images per split [all]'
    )


def read_arguments(parser: argparse.ArgumentParser) -> tuple[argparse.Namespace, Config]:
    """Parse the command line, read its config, merge --cfg-options and create the output folder.

    Raises:
        FileNotFoundError: If the config does not exist.
        ValueError: If the config or an option is invalid, or the output folder is not writable.
    """
    args = parser.parse_args()
    cfg = read_config(args.config)
    merge_options(cfg, args.cfg_options)
    if args.out:
        check_writable(args.out)
    return args, cfg


def write_report(
    report: Any, out: Path | None, name: str, plot: Callable[[Any], Figure] | None = None
) -> None:
    """Write results to ``out/name.json`` and their plot to ``out/name.png``; do nothing without ``out``."""
    if out:
        (out / f'{name}.json').write_text(json.dumps(report, indent=1) + '\n')
        if plot:
            plot(report).savefig(out / f'{name}.png', dpi=110)
