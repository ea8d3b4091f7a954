"""Measure how much of the image and of the labels linear probes recover from each column of a RevCol.

    python tools/analysis/information.py configs/revcol_nano_sample.py WEIGHTS --out work_dirs/information

fits probes to the features of the training images, without augmentation. It prints their quality on the test
images, writes it to information.json and draws it over the columns in information.png. According to the paper
no information is lost from column to column. --plain adds the stages of a network without columns.

Image probes are ridge regressions from the features of a cell to its pixels, which are scaled to 0 to 1. A
cell has 4 x 4 pixels at level 0 and 32 x 32 at level 3. PSNR is computed from the mean squared error over all
test images. Label probes are linear discriminants: from the features averaged over the image to its class in
classification, and from the features at each cell of level 0 to its class in segmentation and detection,
where it is the class of the smallest box around the cell, or background. 'all' are all levels of a column
together, resized to level 0. The ridge of each probe is the best of 11 on every fifth training image; the
final fit includes these images.

The row 'trivial' always predicts the mean training image and the most frequent class.
"""

import argparse
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from mmengine.config import Config
from rich.console import Console
from rich.progress import track

from revcol_mm.analysis.command_line import (
    add_comparison_arguments,
    add_image_arguments,
    make_parser,
    read_arguments,
    write_report,
)
from revcol_mm.analysis.information import ALL, Probes, TrivialPrediction
from revcol_mm.analysis.labelled_images import LabelledImages
from revcol_mm.apis import init_model
from revcol_mm.errors import errors_in_one_line
from revcol_mm.markdown_table import markdown_table

VALIDATION = 5  # every fifth training image is used to choose the ridge


@torch.no_grad()
def measure(args: argparse.Namespace, cfg: Config) -> dict:
    """Fit and test all probes and return the report."""
    training, test = (
        LabelledImages(cfg, split, args.batch_size, args.size, args.num_images, args.seed)
        for split in ('train', 'test')
    )
    if training.num_images < 2:
        raise ValueError('probes need at least 2 training images, one of them to choose the ridge')
    num_classes = len(training.classes)
    networks = {
        Path(config).stem: Probes(init_model(given, checkpoint, args.device), num_classes)
        for config, given, checkpoint in (
            (args.config, cfg, args.checkpoint),
            *([(args.plain[0], *args.plain)] if args.plain else []),
        )
    }
    if len(networks) == 1 and args.plain:
        raise ValueError(f'--plain {args.plain[0]} has the same file name as CONFIG: rename one of them')

    console, trivial = Console(stderr=True), TrivialPrediction(num_classes)
    for batch in track(training.batches(), 'training images', len(training), console=console):
        if batch.images.max() > 1:
            highest = 255 * batch.images.max().item()
            raise ValueError(f'PSNR needs pixels from 0 to 255, but the images have values up to {highest:g}')
        validation = (trivial.num_images + torch.arange(len(batch.images))) % VALIDATION == 0
        trivial.train(batch)
        for probes in networks.values():
            probes.train(batch, validation)
    for probes in networks.values():
        probes.fit()
    for batch in track(test.batches(), 'test images', len(test), console=console):
        trivial.test(batch)
        for probes in networks.values():
            probes.test(batch)
    return dict(
        config=args.config,
        checkpoint=args.checkpoint,
        plain=args.plain,
        size=list(batch.images.shape[2:]),
        num_training_images=training.num_images,
        num_test_images=test.num_images,
        dense=batch.labels.ndim > 1,
        trivial=trivial.scores(),
        rows=[row for name, probes in networks.items() for row in probes.rows(trivial.num_values, name)],
    )


def table(report: dict) -> str:
    """Format the report as a Markdown table."""
    trivial = dict(network='trivial', column='', level='', **report['trivial'])
    rows = [
        [
            *(row['network'], row['column'], row['level']),
            *(f'{row["psnr"]:.2f}', f'{row["accuracy"]:.1f}', f'{row["miou"]:.1f}'),
        ]
        for row in (*report['rows'], trivial)
    ]
    return markdown_table(['network', 'column', 'level', 'PSNR, dB', 'accuracy, %', 'mIoU, %'], rows)


def plot(report: dict) -> Figure:
    """Draw the quality of image and label probes over columns or stages."""
    measures = {
        'psnr': 'image: PSNR, dB',
        **({'miou': 'labels: mIoU, %'} if report['dense'] else {'accuracy': 'labels: accuracy, %'}),
    }
    networks = list(dict.fromkeys(row['network'] for row in report['rows']))
    figure = Figure(figsize=(4.8 * len(networks) + 1, 6.4), layout='constrained')
    axes = figure.subplots(len(measures), len(networks), sharey='row', squeeze=False)
    for axis_row, (measure_name, label) in zip(axes, measures.items()):
        axis_row[0].set_ylabel(label)
        for axis, network in zip(axis_row, networks):
            rows = [row for row in report['rows'] if row['network'] == network]
            draw(axis, rows, measure_name)
            axis.axhline(report['trivial'][measure_name], color='black', linestyle=':', label='trivial')
            axis.set_title(network)
            axis.grid(alpha=0.3)
            axis.xaxis.set_major_locator(MaxNLocator(integer=True))
            axis.legend(fontsize='x-small')
    return figure


def draw(axis: Axes, rows: list[dict], measure_name: str) -> None:
    """Draw a line per level over columns, or a single line over stages of a network without columns."""
    levels = list(dict.fromkeys(row['level'] for row in rows))
    if rows[-1]['column'] == 0:
        *stages, together = [row[measure_name] for row in rows]
        axis.plot(range(len(stages)), stages, marker='o', color='C0', label='stage')
        axis.axhline(together, color='C4', label='all stages')
        axis.set_xlabel('stage')
        return
    for number, level in enumerate(levels):
        values = [row[measure_name] for row in rows if row['level'] == level]
        label = 'all levels' if level == ALL else f'level {level}'
        axis.plot(range(len(values)), values, marker='o', color=f'C{number}', label=label)
    axis.set_xlabel('column')


def main() -> None:
    parser = make_parser(__doc__)
    add_image_arguments(parser, batch_size=8)
    add_comparison_arguments(parser)
    with errors_in_one_line():
        args, cfg = read_arguments(parser)
        report = measure(args, cfg)
    print(table(report))
    write_report(report, args.out, 'information', plot)


if __name__ == '__main__':
    main()
