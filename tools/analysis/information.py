"""What do a RevCol's columns hold: how much of the image, how much of the labels? Linear probes tell.

    python tools/analysis/information.py configs/revcol_nano_sample.py WEIGHTS --out work_dirs/information

fits probes to the features of the training images, without augmentation, prints how good they are on the test
images, and writes that as information.json and, against the column, as information.png. The paper's idea is
that nothing is lost from column to column. --plain adds a network without columns, stage by stage.

Image: ridge regression from the features of a cell to its pixels, which lie between 0 and 1 (a cell of level
0 has 4 x 4 pixels, of level 3 32 x 32); PSNR of the mean squared error over all test images. Labels: linear
discriminant analysis, from the average over the image to its class (classification), or from each cell of
level 0 to its class (segmentation; in detection the class of the smallest box around it, or background).
'all' are the levels of a column together, scaled to level 0's size. Each probe's ridge is the best of 11 on
every fifth training image; then these are fitted to, too.

What is trivial: always the mean training image, always the commonest class.
"""

import argparse
from collections import defaultdict
from pathlib import Path
from typing import Iterator

import numpy as np
import torch
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from mmengine.config import Config
from mmengine.model import BaseModel
from rich.console import Console
from rich.progress import track
from torch import Tensor
from torch.nn import functional as F

from revcol_mm.analysis.command_line import (
    add_image_arguments,
    errors_in_one_line,
    make_parser,
    read_arguments,
    write_report,
)
from revcol_mm.analysis.labelled_images import UNLABELLED, Batch, LabelledImages
from revcol_mm.analysis.linear_probe import Moments, fit_discriminant, fit_ridge, predict
from revcol_mm.apis import init_model
from revcol_mm.evaluation.confusion import class_scores, count_confusion

VALIDATION = 5  # every so many training images choose the ridge
ALL = 'all'
IMAGE, LABELS = 'image', 'labels'


def columns_of(model: BaseModel, batch: Batch) -> Iterator[list[Tensor]]:
    """Levels (B, C, h, w) of every column; the stages of a network without columns are one column.

    Raises:
        ValueError: If a level is no map whose cells fill the images.
    """
    backbone, inputs = model.backbone, model.data_preprocessor(batch.data)['inputs']
    height, width = batch.images.shape[2:]
    for levels in (
        backbone.forward_columns(inputs) if hasattr(backbone, 'forward_columns') else [backbone(inputs)]
    ):
        for level in levels:
            if (
                level.ndim != 4
                or height % level.shape[2]
                or height * level.shape[3] != width * level.shape[2]
            ):
                raise ValueError(
                    f'{type(backbone).__name__}: features {tuple(level.shape)} have no cells that fill '
                    f'images of {height} x {width}; choose other out_indices, or another --size'
                )
        yield list(levels)


def cells(maps: Tensor) -> Tensor:
    """(B, C, h, w) -> (B, h * w, C)."""
    return maps.flatten(2).mT


class Probes:
    """Probes of the image and of the labels, of each level of each column and of all levels together.

    Args:
        model: The network.
        num_classes: Classes K.
    """

    def __init__(self, model: BaseModel, num_classes: int) -> None:
        self.model = model
        self.num_classes = num_classes
        self.moments = defaultdict(lambda: (Moments(), Moments()))  # of training and validation
        self.weights, self.ridges = {}, {}
        self.squared_errors = defaultdict(float)  # summed over pixels
        self.confusion = defaultdict(int)

    def _samples(self, batch: Batch) -> Iterator[tuple[tuple, Tensor, Tensor]]:
        """What each probe is given and has to tell: its key, (B, n, D), and (B, n, T), of labels (B, n)."""
        for column, levels in enumerate(columns_of(self.model, batch)):
            images, labels = (tensor.to(levels[0].device) for tensor in (batch.images, batch.labels))
            finest = levels[0].shape[2:]
            together = torch.cat([F.interpolate(level, finest, mode='bilinear') for level in levels], 1)
            for name, maps in (*enumerate(levels), (ALL, together)):
                stride = images.shape[2] // maps.shape[2]
                yield (IMAGE, column, name), cells(maps), cells(F.pixel_unshuffle(images, stride))
                if labels.ndim == 1:
                    yield (LABELS, column, name), maps.mean((2, 3))[:, None], labels[:, None]
                else:
                    read = F.interpolate(maps, labels.shape[1:], mode='bilinear')
                    yield (LABELS, column, name), cells(read), labels.flatten(1)

    def train(self, batch: Batch, validation: Tensor) -> None:
        """Add training images, of which those that ``validation``, (B,), tells choose the ridge."""
        for key, features, targets in self._samples(batch):
            for moments, chosen in zip(self.moments[key], (~validation, validation)):
                x, y = features[chosen].flatten(0, 1), targets[chosen].flatten(0, 1)
                if key[0] == LABELS:
                    x, y = x[y != UNLABELLED], F.one_hot(y[y != UNLABELLED], self.num_classes)
                moments.add(x, y)

    def fit(self) -> None:
        """Solve for the probes; forgets what training images have been added."""
        while self.moments:
            key, moments = self.moments.popitem()
            fit = fit_ridge if key[0] == IMAGE else fit_discriminant
            self.weights[key], self.ridges[key] = fit(*moments)

    def test(self, batch: Batch) -> None:
        """Add test images."""
        for key, features, targets in self._samples(batch):
            predicted, targets = predict(self.weights[key], features.flatten(0, 1)), targets.flatten(0, 1)
            if key[0] == IMAGE:
                self.squared_errors[key] += (predicted - targets).square().sum().item()
            else:
                known = targets != UNLABELLED
                self.confusion[key] += count_confusion(
                    targets[known], predicted[known].argmax(1), self.num_classes
                )

    def rows(self, num_values: int, network: str) -> list[dict]:
        """Results on ``num_values`` pixels times channels: a row for each level of each column, and all."""
        return [
            dict(
                network=network,
                column=column,
                level=level,
                psnr=psnr(squared_error, num_values),
                **label_scores(self.confusion[LABELS, column, level]),
                image_ridge=self.ridges[IMAGE, column, level],
                label_ridge=self.ridges[LABELS, column, level],
            )
            for (_, column, level), squared_error in self.squared_errors.items()
        ]


def psnr(squared_error: float, num_values: int) -> float:
    """Peak signal-to-noise ratio in dB of values from 0 to 1."""
    return -10 * np.log10(max(squared_error / num_values, np.finfo(float).tiny))


def label_scores(confusion: Tensor) -> dict[str, float]:
    """Accuracy and mean IoU, in percent, of a confusion matrix."""
    accuracy = confusion.diagonal().sum() / confusion.sum()
    return dict(accuracy=100 * accuracy.item(), miou=100 * class_scores(confusion)['iou'].nanmean().item())


@torch.no_grad()
def measure(args: argparse.Namespace, cfg: Config) -> dict:
    """Fit and test all probes; returns the report."""
    training, test = (
        LabelledImages(cfg, split, args.batch_size, args.size, args.num_images, args.seed)
        for split in ('train', 'test')
    )
    if training.num_images < 2:
        raise ValueError('probes take at least 2 training images, one of which chooses the ridge')
    num_classes = len(training.classes)
    networks = {
        Path(config).stem: Probes(init_model(given, checkpoint, args.device), num_classes)
        for config, given, checkpoint in (
            (args.config, cfg, args.checkpoint),
            *([(args.plain[0], *args.plain)] if args.plain else []),
        )
    }
    if len(networks) == 1 and args.plain:
        raise ValueError(f'--plain {args.plain[0]}: CONFIG is named so, too')

    console = Console(stderr=True)
    mean, counts, seen = 0, 0, 0
    for batch in track(training.batches(), 'training images', len(training), console=console):
        validation = (seen + torch.arange(len(batch.images))) % VALIDATION == 0
        seen += len(batch.images)
        mean = mean + batch.images.double().sum(0) / training.num_images
        counts = counts + torch.bincount(batch.labels[batch.labels != UNLABELLED], minlength=num_classes)
        for probes in networks.values():
            probes.train(batch, validation)
    for probes in networks.values():
        probes.fit()
    squared_error, confusion = 0, 0
    for batch in track(test.batches(), 'test images', len(test), console=console):
        squared_error += (batch.images - mean).square().sum().item()
        labels = batch.labels[batch.labels != UNLABELLED]
        confusion = confusion + count_confusion(labels, counts.argmax().expand(labels.shape), num_classes)
        for probes in networks.values():
            probes.test(batch)

    num_values = test.num_images * batch.images[0].numel()
    return dict(
        config=args.config,
        checkpoint=args.checkpoint,
        plain=args.plain,
        size=list(batch.images.shape[2:]),
        num_training_images=training.num_images,
        num_test_images=test.num_images,
        dense=batch.labels.ndim > 1,
        trivial=dict(psnr=psnr(squared_error, num_values), **label_scores(confusion)),
        rows=[row for name, probes in networks.items() for row in probes.rows(num_values, name)],
    )


def table(report: dict) -> str:
    """The report as a Markdown table."""
    lines = ['| network | column | level | PSNR, dB | accuracy, % | mIoU, % |', '|---|---|---|---|---|---|']
    for row in (*report['rows'], dict(network='trivial', column='', level='', **report['trivial'])):
        lines.append(
            f'| {row["network"]} | {row["column"]} | {row["level"]} | {row["psnr"]:.2f} | '
            f'{row["accuracy"]:.1f} | {row["miou"]:.1f} |'
        )
    return '\n'.join(lines)


def plot(report: dict, path: Path) -> None:
    """Draw PSNR and what of labels is read against the column, or the stage of a network without columns."""
    measures = {
        'psnr': 'image: PSNR, dB',
        **({'miou': 'labels: mIoU, %'} if report['dense'] else {'accuracy': 'labels: accuracy, %'}),
    }
    networks = list(dict.fromkeys(row['network'] for row in report['rows']))
    figure, axes = plt.subplots(
        len(measures),
        len(networks),
        figsize=(4.8 * len(networks) + 1, 6.4),
        sharey='row',
        layout='constrained',
        squeeze=False,
    )
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
    figure.savefig(path, dpi=110)
    plt.close(figure)


def draw(axis: Axes, rows: list[dict], measure_name: str) -> None:
    """Draw a line for each level against columns; of one column, one line, its levels being stages."""
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
    with errors_in_one_line():
        args, cfg = read_arguments(parser)
        report = measure(args, cfg)
    print(table(report))
    write_report(report, args.out, 'information')
    if args.out:
        plot(report, args.out / 'information.png')


if __name__ == '__main__':
    main()
