"""Draw images of a config's data set, as its pipeline passes them to the model, with their ground truth.

    python tools/analysis/browse_dataset.py configs/mask2former_revcol_nano_sample.py --number 8 --out
    work_dirs/look

draws images at equal distances in the data set with the config's visualizer. It prints the size of each image
after the pipeline and its contents: the number of objects, the share of pixels, or the class of the image.
browse_dataset.json contains the same. Pipelines of validation and testing often load annotations after
resizing, for metrics on the original images; here they are loaded first, so that they are resized, too.
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

from revcol_mm.analysis.command_line import make_parser, read_arguments, write_report
from revcol_mm.analysis.labelled_images import innermost_dataset
from revcol_mm.data.pipelines import ignore_index, image_loader, transform_name, transforms_of
from revcol_mm.errors import errors_in_one_line
from revcol_mm.markdown_table import markdown_table
from revcol_mm.preflight import check_files
from revcol_mm.training.seeding import seed_everything
from revcol_mm.visualization.drawable_samples import enlarge, without_ignored
from revcol_mm.visualization.rgb_picture import reads_bgr, rgb_picture


def contents(sample: Any, classes: tuple[str, ...]) -> dict[str, float]:
    """Return the number of objects or the share of pixels of each class in a sample, or 1 for its class.

    Labels that are not classes, such as the ignore label, are left out.
    """
    if 'gt_instances' in sample:
        return Counter(classes[label] for label in sample.gt_instances.labels.tolist())
    if 'gt_sem_seg' in sample:
        labels, counts = sample.gt_sem_seg.data.unique(return_counts=True)
        shares = zip(labels.tolist(), (counts / counts.sum()).tolist())
        return {classes[label]: share for label, share in shares if label < len(classes)}
    return {classes[label]: 1 for label in sample.gt_label.tolist()}


def describe(sample: Any, amounts: dict[str, float]) -> str:
    """Describe the :func:`contents` of a sample, beginning with the most frequent class."""
    if 'gt_instances' in sample:
        form = '{} ({})'
    else:
        form = '{} ({:.1%})' if 'gt_sem_seg' in sample else '{}'
    ordered = sorted(amounts.items(), key=lambda item: -item[1])
    return ', '.join(form.format(*item) for item in ordered) or 'nothing'


def draw(args: argparse.Namespace, cfg: Config) -> list[dict]:
    """Draw the pictures and return the contents of each."""
    loader = f'{args.split}_dataloader'
    if args.number < 1:
        raise ValueError(f'--number must be at least 1, got {args.number}')
    if not cfg.get(loader) or not cfg.get('visualizer'):
        raise ValueError(f'{args.config} lacks {loader} or visualizer, which are needed')
    check_files(Config(dict(model={}, loader=cfg[loader])), ('loader',))
    if args.split != 'train':
        pipeline = innermost_dataset(cfg[loader].dataset).pipeline
        pipeline.sort(key=lambda transform: not transform_name(transform).startswith('Load'))
    rows = []
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        dataset = DATASETS.build(cfg[loader].dataset)
        visualizer = VISUALIZERS.build(dict(cfg.visualizer, vis_backends=None, name='browse_dataset'))
        visualizer.dataset_meta = dataset.metainfo
        ignored, is_bgr = ignore_index(dataset), reads_bgr(image_loader(transforms_of(dataset)))
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
            amounts = contents(sample, dataset.metainfo['classes'])
            rows.append(
                dict(
                    picture=picture.name,
                    source=str(source),
                    size=list(size),
                    holds=amounts,
                    description=describe(sample, amounts),
                )
            )
    return rows


def table(rows: list[dict]) -> str:
    """Format the size and the contents of the pictures as a Markdown table."""
    cells = [[row['picture'], ' x '.join(map(str, row['size'])), row['description']] for row in rows]
    return markdown_table(['picture', 'size', 'holds'], cells)


def main() -> None:
    parser = make_parser(__doc__)
    parser.set_defaults(out=Path('work_dirs/browse_dataset'))
    parser.add_argument('--split', choices=('train', 'val', 'test'), default='train', help='[train]')
    parser.add_argument('--number', type=int, default=16, metavar='N', help='number of pictures [16]')
    parser.add_argument('--seed', type=int, default=0, help='seed of the augmentation [0]')
    with errors_in_one_line():
        args, cfg = read_arguments(parser)
        rows = draw(args, cfg)
    print(f'{table(rows)}\n\npictures in {args.out}')
    write_report(rows, args.out, 'browse_dataset')


if __name__ == '__main__':
    main()
