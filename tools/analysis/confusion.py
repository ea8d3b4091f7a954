"""Which classes does a model take for which? Confusion matrix and scores of every class, on the test images.

    python tools/analysis/confusion.py configs/upernet_revcol_nano_sample.py WEIGHTS --out work_dirs/confusion

prints how many there are of every class, precision and recall, of segmentation also IoU, in percent, and
writes them with the matrix of counts as confusion.json, and the matrix as confusion.png, each row as shares
of that class. Segmentation counts pixels, classification images, detection objects: a row 'background' has
boxes without an object, a column 'background' objects without a box. With --trimap R segmentation counts only
pixels that are within R pixels of a boundary.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from matplotlib import pyplot as plt
from mmengine.config import Config
from mmengine.evaluator import Evaluator
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from rich.console import Console
from rich.progress import track

from revcol_mm.analysis.command_line import (
    make_parser,
    read_arguments,
    write_report,
)
from revcol_mm.analysis.heat_map import heat_map
from revcol_mm.apis import init_model
from revcol_mm.data.pipelines import ignore_index
from revcol_mm.errors import errors_in_one_line
from revcol_mm.evaluation import ConfusionMetric
from revcol_mm.evaluation.confusion import class_scores
from revcol_mm.preflight import check_files


@torch.no_grad()
def measure(args: argparse.Namespace, cfg: Config) -> dict:
    """Test the model; returns the report."""
    options = dict(
        mmdet=dict(score_threshold=args.score_threshold, iou_threshold=args.iou_threshold),
        mmseg=dict(trimap_radius=args.trimap),
    )
    for scope, values in options.items():
        given = [name for name, value in values.items() if value is not None]
        if given and scope != cfg.default_scope:
            kind = dict(mmdet='detector', mmseg='segmentor')[scope]
            raise ValueError(f'{args.config} is no {kind}: it takes no {" or ".join(given)}')
    own = options.get(cfg.default_scope, {})
    metric = ConfusionMetric(**{name: value for name, value in own.items() if value is not None})
    check_files(cfg, ('test_dataloader',), evaluators=False)
    model = init_model(cfg, args.checkpoint, args.device)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        loader = Runner.build_dataloader(cfg.test_dataloader)
        metric.ignore_index = ignore_index(loader.dataset)
        evaluator = Evaluator(metric)
        evaluator.dataset_meta = loader.dataset.metainfo
        for batch in track(loader, 'batches', console=Console(stderr=True)):
            evaluator.process(model.test_step(batch), batch)
        evaluator.evaluate(len(loader.dataset))

    scores = class_scores(metric.matrix)
    if cfg.default_scope != 'mmseg':
        del scores['iou']
    rows = [
        dict({'class': name}, count=sum(counts))
        for name, counts in zip(metric.classes, metric.matrix.tolist())
    ]
    for name, values in scores.items():
        for row, value in zip(rows, values):
            row[name] = None if value.isnan() else value.item()
    return dict(
        config=args.config,
        checkpoint=args.checkpoint,
        **{name: getattr(metric, name) for name in own},
        classes=rows[: len(loader.dataset.metainfo['classes'])],
        names=metric.classes,
        matrix=metric.matrix.tolist(),
    )


def table(report: dict) -> str:
    """Scores of every class in percent, and their means, as a Markdown table."""
    rows = report['classes']
    names = list(rows[0])[2:]
    lines = [f'| class | count | {" | ".join(names)} |', '|---' * (2 + len(names)) + '|']
    for row in rows:
        values = ['' if row[name] is None else f'{100 * row[name]:.1f}' for name in names]
        lines.append(f'| {row["class"]} | {row["count"]} | {" | ".join(values)} |')
    means = []
    for name in names:
        values = [row[name] for row in rows if row[name] is not None]
        means.append(f'{100 * np.mean(values):.1f}' if values else '')
    lines.append(f'| mean | {sum(row["count"] for row in rows)} | {" | ".join(means)} |')
    return '\n'.join(lines)


def plot(report: dict, path: Path) -> None:
    """Draw the matrix, each row as shares of its sum."""
    matrix, names = np.array(report['matrix'], float), report['names']
    totals = matrix.sum(1, keepdims=True)
    shares = np.divide(matrix, totals, out=np.full_like(matrix, np.nan), where=totals > 0)
    side = max(6, 0.19 * len(names) + 2)
    figure, axis = plt.subplots(figsize=(side + 1, side), layout='constrained')
    shown = heat_map(axis, shares, names, names)
    axis.set_xlabel('predicted')
    axis.set_ylabel('true')
    axis.set_title(Path(report['config']).stem)
    figure.colorbar(shown, ax=axis, label='share of the true class')
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument('checkpoint', help='weights, file or URL')
    parser.add_argument(
        '--score-threshold',
        type=float,
        metavar='S',
        help='of detection: lowest score of a box that counts [0.3]',
    )
    parser.add_argument(
        '--iou-threshold',
        type=float,
        metavar='IOU',
        help='of detection: lowest IoU of a box and its object [0.5]',
    )
    parser.add_argument(
        '--trimap',
        type=int,
        metavar='R',
        help='of segmentation: count only pixels within R pixels of a boundary [all]',
    )
    parser.add_argument('--device', help="such as 'cpu' or 'cuda:1' [a GPU where there is one]")
    with errors_in_one_line():
        args, cfg = read_arguments(parser)
        report = measure(args, cfg)
    print(table(report))
    write_report(report, args.out, 'confusion')
    if args.out:
        plot(report, args.out / 'confusion.png')


if __name__ == '__main__':
    main()
