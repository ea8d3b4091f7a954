"""How alike are a RevCol's features, the image and the labels? Unbiased linear CKA, over minibatches.

    python tools/analysis/cka.py configs/revcol_nano_sample.py WEIGHTS --passes 10 --out work_dirs/cka

prints the similarity of each level of each column to the image and to the labels, and writes it as cka.png
and, with that of any two levels, as cka_pairs.png and cka.json. --plain adds the layers of a network without
columns.

Classification compares whole images: features and the normalised image are flattened, labels one-hot, as in
RevCol's official tools/visual.py. Detection and segmentation compare places of 32 x 32 pixels, what is in a
place flattened, because there the same thing may be anywhere: HSIC is estimated at every place over the
images. Labels are the share that each class has of a place (in detection of boxes, smaller ones on top of
larger ones).

Where it differs from the official tool: that takes one batch of 512 images, the first of the validation set,
where they are sorted by class; this shuffles, and adds HSIC up over all minibatches of the test images (an
incomplete last one is left out) and over --passes through them, each in another order.
"""

import argparse
import re
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from matplotlib import pyplot as plt
from mmengine.config import Config
from mmengine.model import BaseModel
from rich.console import Console
from rich.progress import track

from revcol_mm.analysis.cka import MIN_IMAGES, MinibatchCKA, gram, layer_grams
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

# Blocks of ConvNeXt, ResNet and Swin in OpenMMLab and timm: stages.0.1, layer1.0, stages.0.blocks.1
LAYERS = r'(stages|layers?)\.?\d+(\.blocks)?\.\d+'


def plain_layers(model: BaseModel, pattern: str) -> list[str]:
    """Names of the backbone's modules that match a pattern.

    Raises:
        ValueError: If there is none.
    """
    names = [name for name, _ in model.backbone.named_modules()]
    matching = [name for name in names if re.fullmatch(pattern, name)]
    if not matching:
        parts = ', '.join(name for name in names if name and '.' not in name)
        raise ValueError(f'--layers {pattern}: no module of the plain backbone is named so; it has {parts}')
    return matching


@torch.no_grad()
def measure(args: argparse.Namespace, cfg: Config) -> dict:
    """CKA of all representations; returns the report."""
    if args.passes < 1:
        raise ValueError(f'--passes starts at 1, got {args.passes}')
    if args.batch_size < MIN_IMAGES:
        raise ValueError(
            f'--batch-size is at least {MIN_IMAGES} for an unbiased estimate, got {args.batch_size}'
        )
    images = LabelledImages(
        cfg, 'test', args.batch_size, args.size, args.num_images, seed=args.seed, drop_last=True
    )
    model = init_model(cfg, args.checkpoint, args.device)
    if not hasattr(model.backbone, 'forward_columns'):
        raise ValueError(f'{args.config}: {type(model.backbone).__name__} has no columns; give it to --plain')
    plain = init_model(*args.plain, args.device) if args.plain else None
    layers = plain_layers(plain, args.layers) if plain else []

    cka = MinibatchCKA()
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
        cka.update(grams)

    names = [f'column {c} level {level}' for c, column in enumerate(columns) for level in range(len(column))]
    names = ['image', 'labels', *names, *layers]
    values = cka.compute()
    constant = [name for name, value in zip(names, values.diagonal()) if not value.isfinite()]
    if constant:
        raise ValueError(f'does not vary between images of a minibatch: {", ".join(constant)}')
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
    """Similarity to the image and to the labels as a Markdown table."""
    lines = ['| features | image | labels |', '|---|---|---|']
    for name, (image, labels, *_) in zip(report['names'][2:], report['cka'][2:]):
        lines.append(f'| {name} | {image:.3f} | {labels:.3f} |')
    return '\n'.join(lines)


def plot(report: dict, path: Path) -> None:
    """Draw similarity to image and labels: columns times levels, and below the plain network's layers."""
    num_columns, num_levels = report['num_columns'], report['num_levels']
    own = slice(2, 2 + num_columns * num_levels)
    layers = report['names'][own.stop :]
    figure, axes = plt.subplots(
        2 if layers else 1,
        2,
        figsize=(max(9, 1.2 * num_columns), 5.2 if layers else 3.5),
        height_ratios=[num_levels, 1.2] if layers else [1],
        layout='constrained',
        squeeze=False,
    )
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
    figure.savefig(path, dpi=110)
    plt.close(figure)


def plot_pairs(report: dict, path: Path) -> None:
    """Draw the similarity of any two representations."""
    names, values = report['names'], np.array(report['cka'])
    side = max(6, 0.19 * len(names) + 2)
    figure, axis = plt.subplots(figsize=(side + 1, side), layout='constrained')
    shown = heat_map(axis, values, names, names)
    axis.tick_params(labelsize='small' if len(names) <= MAX_NUMBERS else 'x-small')
    num_levels, num_columns = report['num_levels'], report['num_columns']
    for start in range(
        2, 3 + num_columns * num_levels, num_levels
    ):  # image and labels, columns, plain layers
        axis.axhline(start - 0.5, color='white', linewidth=1)
        axis.axvline(start - 0.5, color='white', linewidth=1)
    axis.set_title('CKA of any two representations')
    figure.colorbar(shown, ax=axis)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    parser = make_parser(__doc__)
    add_image_arguments(parser, batch_size=32)
    add_comparison_arguments(parser)
    parser.add_argument('--passes', type=int, default=1, help='times that all images are taken [1]')
    parser.add_argument(
        '--layers', metavar='REGEX', default=LAYERS, help="layers of --plain, by their names [its blocks']"
    )
    with errors_in_one_line():
        args, cfg = read_arguments(parser)
        report = measure(args, cfg)
    print(table(report))
    write_report(report, args.out, 'cka')
    if args.out:
        plot(report, args.out / 'cka.png')
        plot_pairs(report, args.out / 'cka_pairs.png')


if __name__ == '__main__':
    main()
