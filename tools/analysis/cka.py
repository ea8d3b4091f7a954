"""Measure the similarity of a RevCol's features with the image and the labels by unbiased linear CKA.

    python tools/analysis/cka.py configs/revcol_nano_sample.py WEIGHTS --passes 10 --out work_dirs/cka

prints the similarity of each level of each column with the image and with the labels, and draws it in
cka.png. cka_pairs.png and cka.json contain the similarity of all pairs of levels. --plain adds the layers of
a network without columns.

Classification compares whole images: features and the normalised image are flattened and labels are one-hot,
as in RevCol's official tools/visual.py. Detection and segmentation compare places of 32 x 32 pixels, because
the same object may be anywhere in an image: features in a place are flattened, and HSIC is estimated over the
images separately for every place. Labels are the share of each class in a place; in detection they are the
classes of boxes, with smaller boxes on top of larger ones.

The official tool uses one batch of 512 images, the first ones of the validation set, which is sorted by
class. This tool shuffles the test images, sums HSIC over all complete minibatches, and repeats this in
another order for each of --passes.
"""

import argparse
import re
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from mmengine.config import Config
from mmengine.model import BaseModel
from rich.console import Console
from rich.progress import track

from revcol_mm.analysis.cka import MIN_IMAGES, cka, gram, layer_grams, unbiased_hsic
from revcol_mm.analysis.command_line import (
    add_comparison_arguments,
    add_image_arguments,
    make_parser,
    read_arguments,
    write_report,
)
from revcol_mm.analysis.heat_map import MAX_NUMBERS, heat_map
from revcol_mm.analysis.labelled_images import LabelledImages, label_shares
from revcol_mm.apis import init_model
from revcol_mm.errors import errors_in_one_line
from revcol_mm.markdown_table import markdown_table

# Names of the blocks of ConvNeXt, ResNet and Swin: stages.0.1, layer1.0, stages.0.blocks.1
LAYERS = r'(stages|layers?)\.?\d+(\.blocks)?\.\d+'


def plain_layers(model: BaseModel, pattern: str) -> list[str]:
    """Return the names of the backbone's modules that match a regular expression.

    Raises:
        ValueError: If no name matches.
    """
    names = [name for name, _ in model.backbone.named_modules()]
    matching = [name for name in names if re.fullmatch(pattern, name)]
    if not matching:
        parts = ', '.join(name for name in names if name and '.' not in name)
        raise ValueError(f'--layers {pattern} matches no module of the plain backbone; it has {parts}')
    return matching


@torch.no_grad()
def measure(args: argparse.Namespace, cfg: Config) -> dict:
    """Compute the CKA of all pairs of representations and return the report."""
    if args.passes < 1:
        raise ValueError(f'--passes must be at least 1, got {args.passes}')
    if args.batch_size < MIN_IMAGES:
        raise ValueError(
            f'--batch-size must be at least {MIN_IMAGES} for an unbiased estimate, got {args.batch_size}'
        )
    images = LabelledImages(
        cfg, 'test', args.batch_size, args.size, args.num_images, seed=args.seed, drop_last=True
    )
    model = init_model(cfg, args.checkpoint, args.device)
    if not hasattr(model.backbone, 'forward_columns'):
        raise ValueError(
            f'{args.config}: {type(model.backbone).__name__} has no columns: use it with --plain'
        )
    plain = init_model(*args.plain, args.device) if args.plain else None
    layers = plain_layers(plain, args.layers) if plain else []

    hsic = 0
    epochs = chain.from_iterable(images.batches(epoch) for epoch in range(args.passes))
    total = len(images) * args.passes
    for batch in track(epochs, 'minibatches', total, console=Console(stderr=True)):
        inputs = model.data_preprocessor(batch.data)['inputs']
        labels = label_shares(batch.labels, len(images.classes)).to(inputs.device)
        grid = (1, 1) if labels.ndim == 2 else tuple(labels.shape[2:])
        columns = [
            [gram(level, grid) for level in column] for column in model.backbone.forward_columns(inputs)
        ]
        grams = [gram(inputs, grid), gram(labels, grid), *chain.from_iterable(columns)]
        if plain:
            grams += layer_grams(plain.backbone, plain.data_preprocessor(batch.data)['inputs'], layers, grid)
        hsic = hsic + unbiased_hsic(torch.stack(grams))

    names = [f'column {c} level {level}' for c, column in enumerate(columns) for level in range(len(column))]
    names = ['image', 'labels', *names, *layers]
    values = cka(hsic)
    constant = [name for name, value in zip(names, values.diagonal()) if not value.isfinite()]
    if constant:
        raise ValueError(f'CKA is undefined for what is equal in all images: {", ".join(constant)}')
    return dict(
        config=args.config,
        checkpoint=args.checkpoint,
        plain=args.plain,
        size=list(batch.images.shape[2:]),
        num_images=images.num_images,
        batch_size=args.batch_size,
        passes=args.passes,
        num_columns=len(columns),
        num_levels=len(columns[0]),
        names=names,
        cka=values.tolist(),
    )


def table(report: dict) -> str:
    """Format the similarity with the image and with the labels as a Markdown table."""
    rows = [
        [name, f'{image:.3f}', f'{labels:.3f}']
        for name, (image, labels, *_) in zip(report['names'][2:], report['cka'][2:])
    ]
    return markdown_table(['features', 'image', 'labels'], rows)


def plot(report: dict) -> Figure:
    """Draw the similarity with image and labels by column and level, and below it for the plain network."""
    num_columns, num_levels = report['num_columns'], report['num_levels']
    own = slice(2, 2 + num_columns * num_levels)
    layers = report['names'][own.stop :]
    figure = Figure(figsize=(max(9, 1.2 * num_columns), 5.2 if layers else 3.5), layout='constrained')
    height_ratios = [num_levels, 1.2] if layers else [1]
    axes = figure.subplots(len(height_ratios), 2, height_ratios=height_ratios, squeeze=False)
    for number, what in enumerate(('image', 'labels')):
        values = np.array(report['cka'])[number]
        highest = max(values[2:].max(), 0.01)
        shown = heat_map(
            axes[0, number],
            values[own].reshape(num_columns, num_levels).T,
            [f'level {level}' for level in range(num_levels)],
            [str(column) for column in range(num_columns)],
            highest,
        )
        axes[0, number].set_title(f'CKA of features and {what}')
        axes[0, number].set_xlabel('column')
        if layers:
            heat_map(axes[1, number], values[None, own.stop :], [''], layers, highest)
            axes[1, number].tick_params(labelsize='x-small', left=False)
            axes[1, number].set_title(Path(report['plain'][0]).stem)
        figure.colorbar(shown, ax=axes[:, number])
    figure.suptitle(Path(report['config']).stem)
    return figure


def plot_pairs(report: dict) -> Figure:
    """Draw the similarity of all pairs of representations."""
    names, values = report['names'], np.array(report['cka'])
    side = max(6, 0.19 * len(names) + 2)
    figure = Figure(figsize=(side + 1, side), layout='constrained')
    axis = figure.subplots()
    shown = heat_map(axis, values, names, names)
    axis.tick_params(labelsize='small' if len(names) <= MAX_NUMBERS else 'x-small')
    num_levels, num_columns = report['num_levels'], report['num_columns']
    for start in range(2, 3 + num_columns * num_levels, num_levels):  # between columns
        axis.axhline(start - 0.5, color='white', linewidth=1)
        axis.axvline(start - 0.5, color='white', linewidth=1)
    axis.set_title('CKA of any two representations')
    figure.colorbar(shown, ax=axis)
    return figure


def main() -> None:
    parser = make_parser(__doc__)
    add_image_arguments(parser, batch_size=32)
    add_comparison_arguments(parser)
    parser.add_argument('--passes', type=int, default=1, help='number of passes through the images [1]')
    parser.add_argument(
        '--layers', metavar='REGEX', default=LAYERS, help='names of the layers of --plain [its blocks]'
    )
    with errors_in_one_line():
        args, cfg = read_arguments(parser)
        report = measure(args, cfg)
    print(table(report))
    write_report(report, args.out, 'cka', plot)
    if args.out:
        plot_pairs(report).savefig(args.out / 'cka_pairs.png', dpi=110)


if __name__ == '__main__':
    main()
