"""What the analysis tools have in common: arguments, reports."""

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib
from mmengine.config import Config

from revcol_mm.config.command_line import add_config_arguments, check_writable, read_config
from revcol_mm.config.options import merge_options

matplotlib.use('Agg')  # figures are files


def make_parser(description: str) -> argparse.ArgumentParser:
    """A parser with CONFIG, --cfg-options and --out, whose help shows a module's docstring as it is."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_config_arguments(parser)
    parser.add_argument('--out', type=Path, help='folder for the results as JSON, and figures')
    return parser


def add_image_arguments(parser: argparse.ArgumentParser, batch_size: int) -> None:
    """Add CHECKPOINT, how images are batched, and on what device."""
    parser.add_argument('checkpoint', help='weights, file or URL')
    parser.add_argument(
        '--size',
        nargs=2,
        type=int,
        metavar=('H', 'W'),
        help='height and width to which images are scaled [classification: as in testing, else a square of '
        'the shorter side that images have in testing, to a multiple of 32]',
    )
    parser.add_argument('--batch-size', type=int, default=batch_size, metavar='B', help=f'[{batch_size}]')
    parser.add_argument('--seed', type=int, default=0, help='of the order of images [0]')
    parser.add_argument('--device', help="such as 'cpu' or 'cuda:1' [a GPU where there is one]")


def add_comparison_arguments(parser: argparse.ArgumentParser) -> None:
    """Add a network to compare with, and of how many images."""
    parser.add_argument(
        '--plain',
        nargs=2,
        metavar=('CONFIG', 'CHECKPOINT'),
        help='a network without columns to compare with, on the same images',
    )
    parser.add_argument('--num-images', type=int, metavar='N', help='use no more of a split [all]')


def read_arguments(parser: argparse.ArgumentParser) -> tuple[argparse.Namespace, Config]:
    """The parsed command line, and its config with the options merged; the folder for results can be written.

    Raises:
        FileNotFoundError: If there is no such config.
        ValueError: If the config or an option is wrong, or the folder cannot be written.
    """
    args = parser.parse_args()
    cfg = read_config(args.config)
    merge_options(cfg, args.cfg_options)
    if args.out:
        check_writable(args.out)
    return args, cfg


def write_report(report: Any, out: Path | None, name: str) -> None:
    """Write results as JSON, if there is a folder for them."""
    if out:
        (out / f'{name}.json').write_text(json.dumps(report, indent=1) + '\n')
