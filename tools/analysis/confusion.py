"""Compute the confusion matrix of a model on the test images, and the scores of every class.

    python tools/analysis/confusion.py configs/upernet_revcol_nano_sample.py WEIGHTS --out work_dirs/confusion

prints the count, the precision and the recall of every class, and for segmentation its IoU, in percent.
confusion.json contains the same and the matrix of counts; confusion.png shows the matrix with every row as
shares of its class. Segmentation counts pixels, classification images, and detection objects; its row
'background' has boxes without an object and its column 'background' objects without a box. With --trimap R
segmentation counts only pixels within R pixels of a boundary.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from mmengine.config import Config
from mmengine.evaluator import Evaluator
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from rich.console import Console
from rich.progress import track

from revcol_mm.analysis.command_line import (
    add_device_argument,
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
from revcol_mm.markdown_table import markdown_table
from revcol_mm.preflight import check_files


@torch.no_grad()
def measure(args: argparse.Namespace, cfg: Config) -> dict:
    """Test the model and return the report."""
    options = dict(
        mmdet=dict(score_threshold=args.score_threshold, iou_threshold=args.iou_threshold),
        mmseg=dict(trimap_radius=args.trimap),
    )
    for scope, values in options.items():
        given = [name for name, value in values.items() if value is not None]
        if given and scope != cfg.default_scope:
            kind = dict(mmdet='detector', mmseg='segmentor')[scope]
            raise ValueError(f'{args.config} is no {kind}, so {" and ".join(given)} cannot be used')
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
    """Format the scores of every class and their means, in percent, as a Markdown table."""
    names = list(report['classes'][0])[2:]
    mean = {'class': 'mean', 'count': sum(row['count'] for row in report['classes'])}
    for name in names:
        values = [row[name] for row in report['classes'] if row[name] is not None]
        mean[name] = np.mean(values) if values else None
    rows = [
        [
            *(row['class'], row['count']),
            *('' if row[name] is None else f'{100 * row[name]:.1f}' for name in names),
        ]
        for row in (*report['classes'], mean)
    ]
    return markdown_table(['class', 'count', *names], rows)


def plot(report: dict) -> Figure:
    """Draw the matrix with every row as shares of its sum."""
    matrix, names = np.array(report['matrix'], float), report['names']
    totals = matrix.sum(1, keepdims=True)
    shares = np.divide(matrix, totals, out=np.full_like(matrix, np.nan), where=totals > 0)
    side = max(6, 0.19 * len(names) + 2)
    figure = Figure(figsize=(side + 1, side), layout='constrained')
    axis = figure.subplots()
    shown = heat_map(axis, shares, names, names)
    axis.set_xlabel('predicted')
    axis.set_ylabel('true')
    axis.set_title(Path(report['config']).stem)
    figure.colorbar(shown, ax=axis, label='share of the true class')
    return figure


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument('checkpoint', help='weights, file or URL')
    parser.add_argument(
        '--score-threshold',
        type=float,
        metavar='S',
        help='detection: lowest score of boxes that count [0.3]',
    )
    parser.add_argument(
        '--iou-threshold',
        type=float,
        metavar='IOU',
        help='detection: lowest IoU of a box with its object [0.5]',
    )
    parser.add_argument(
        '--trimap',
        type=int,
        metavar='R',
        help='segmentation: count only pixels within R pixels of a boundary [all]',
    )
    add_device_argument(parser)
    with errors_in_one_line():
        args, cfg = read_arguments(parser)
        report = measure(args, cfg)
    print(table(report))
    write_report(report, args.out, 'confusion', plot)


if __name__ == '__main__':
    main()
