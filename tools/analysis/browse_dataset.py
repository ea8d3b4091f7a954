"""What does a model get to see? Pictures of a config's data set after its pipeline, with the ground truth
drawn.

    python tools/analysis/browse_dataset.py configs/mask2former_revcol_nano_sample.py --number 8 --out
    work_dirs/look

draws images from all over the data set by the config's visualizer, and prints the size of each, after
cropping and scaling, and what it holds: objects of each class, shares of its pixels, or its class.
browse_dataset.json has the same. In the pipelines of validation and testing annotations often are loaded
after images have been scaled, for metrics on original images; here they are scaled, too.
"""

import argparse
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config
from mmengine.registry import DATASETS, VISUALIZERS, DefaultScope
from rich.console import Console
from rich.progress import track

from revcol_mm.analysis.command_line import (
    make_parser,
    read_arguments,
    write_report,
)
from revcol_mm.analysis.labelled_images import innermost_dataset, transform_name
from revcol_mm.data.pipelines import ignore_index, image_loader, innermost_datasets
from revcol_mm.errors import errors_in_one_line
from revcol_mm.preflight import check_files
from revcol_mm.training.resumable_data import seed_everything
from revcol_mm.visualization.prediction_pictures import enlarge, reads_bgr, rgb_picture, without_ignored


def contents(sample: Any, classes: tuple[str, ...]) -> dict[str, float]:
    """What a sample holds, by class: number of objects, share of all pixels, or 1 for the image's class.

    Labels beyond the classes are left out.
    """
    if 'gt_instances' in sample:
        return Counter(classes[label] for label in sample.gt_instances.labels.tolist())
    if 'gt_sem_seg' in sample:
        labels, counts = sample.gt_sem_seg.data.unique(return_counts=True)
        shares = zip(labels.tolist(), (counts / counts.sum()).tolist())
        return {classes[label]: share for label, share in shares if label < len(classes)}
    return {classes[label]: 1 for label in sample.gt_label.tolist()}


def describe(sample: Any, classes: tuple[str, ...]) -> str:
    """:func:`contents` in words, commonest class first."""
    written = []
    for name, amount in sorted(contents(sample, classes).items(), key=lambda item: -item[1]):
        if 'gt_instances' in sample:
            written.append(f'{name} ({amount})')
        elif 'gt_sem_seg' in sample:
            written.append(f'{name} ({amount:.1%})')
        else:
            written.append(name)
    return ', '.join(written) or 'nothing'


def draw(args: argparse.Namespace, cfg: Config) -> list[dict]:
    """Draw the pictures; returns what each holds."""
    loader = f'{args.split}_dataloader'
    if args.number < 1:
        raise ValueError(f'--number starts at 1, got {args.number}')
    if not cfg.get(loader) or not cfg.get('visualizer'):
        raise ValueError(f'{args.config} has no {loader}, or no visualizer')
    check_files(Config(dict(model={}, loader=cfg[loader])), ('loader',))
    if args.split != 'train':
        pipeline = innermost_dataset(cfg[loader].dataset).pipeline
        pipeline.sort(key=lambda transform: not transform_name(transform).startswith('Load'))
    rows = []
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        dataset = DATASETS.build(cfg[loader].dataset)
        visualizer = VISUALIZERS.build(dict(cfg.visualizer, vis_backends=None, name='browse_dataset'))
        visualizer.dataset_meta = dataset.metainfo
        ignored, (_, transforms) = ignore_index(dataset), next(innermost_datasets(dataset))
        is_bgr = reads_bgr(image_loader(transforms))
        indices = np.unique(np.linspace(0, len(dataset) - 1, args.number).round().astype(int)).tolist()
        for index in track(indices, 'pictures', console=Console(stderr=True)):
            seed_everything(args.seed, index)
            data = dataset[index]
            sample = without_ignored(data['data_samples'], ignored, len(dataset.metainfo['classes']))
            image = rgb_picture(data['inputs'].permute(1, 2, 0).numpy(), is_bgr)
            size = image.shape[:2]
            source = Path(sample.get('img_path', ''))
            picture = args.out / f'{args.split}_{index:06}_{source.stem}.png'
            image, sample = enlarge(image, sample)
            if cfg.default_scope == 'mmpretrain':
                visualizer.visualize_cls(image, sample, draw_pred=False, out_file=str(picture))
            else:
                visualizer.add_datasample('', image, sample, draw_pred=False, out_file=str(picture))
            rows.append(
                dict(
                    picture=picture.name,
                    source=str(source),
                    size=list(size),
                    holds=contents(sample, dataset.metainfo['classes']),
                    description=describe(sample, dataset.metainfo['classes']),
                )
            )
    return rows


def table(rows: list[dict]) -> str:
    """What the pictures hold as a Markdown table."""
    lines = ['| picture | size | holds |', '|---|---|---|']
    for row in rows:
        height, width = row['size']
        lines.append(f'| {row["picture"]} | {height} x {width} | {row["description"]} |')
    return '\n'.join(lines)


def main() -> None:
    parser = make_parser(__doc__)
    parser.set_defaults(out=Path('work_dirs/browse_dataset'))
    parser.add_argument('--split', choices=('train', 'val', 'test'), default='train', help='[train]')
    parser.add_argument('--number', type=int, default=16, metavar='N', help='pictures to draw [16]')
    parser.add_argument('--seed', type=int, default=0, help='of the augmentation [0]')
    with errors_in_one_line():
        args, cfg = read_arguments(parser)
        rows = draw(args, cfg)
    print(f'{table(rows)}\n\npictures in {args.out}')
    write_report(rows, args.out, 'browse_dataset')


if __name__ == '__main__':
    main()
