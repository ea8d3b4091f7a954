"""Predict on images and videos, and write the predictions and pictures of them.

Written below --out are overlays/ (pictures), images.json (images and classes) and, depending on the task:

- detection: predictions.json (COCO results, with masks as RLE)
- classification: predictions.json (classes with scores)
- semantic segmentation: labels/ (PNGs as in ADE20K)
- panoptic segmentation: segments/ and predictions.json (PNGs and results as in COCO)

Images that cannot be read are reported and skipped, and the exit status is then 65.

Example: revcol predict photos 'more/*.jpg' clip.mp4 --config configs/dino_revcol_t_coco.py \
    --checkpoint work_dirs/run1/epoch_12.pth
"""

import argparse
import sys
from pathlib import Path

from revcol_mm.check_env import CORE, require_parts

require_parts('predicting', (*CORE, 'mmcv'))

from rich import progress as rich_progress
from rich.console import Console

from revcol_mm.apis import init_inferencer
from revcol_mm.apis.hub import load
from revcol_mm.apis.image_files import UNREADABLE, Source, batches, find_sources, num_pictures, read_pictures
from revcol_mm.apis.image_header import ImageError
from revcol_mm.apis.inferencer import Inferencer
from revcol_mm.apis.prediction_writer import PredictionWriter
from revcol_mm.config.command_line import check_writable
from revcol_mm.errors import errors_in_one_line


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('images', nargs='+', metavar='IMAGES', help='file, folder, pattern or video')
    parser.add_argument('--config', help='config file, or a name of `revcol configs`')
    parser.add_argument('--checkpoint', help='weights, file or URL, or a file of `revcol export`')
    parser.add_argument(
        '--model',
        metavar='NAME',
        help='instead of both: a folder of `revcol publish`, or ORG/REPO of the Hub',
    )
    parser.add_argument('--out', type=Path, help='folder for the results [work_dirs/CONFIG/predictions]')
    parser.add_argument('--device', help="such as 'cpu' or 'cuda:1' [a GPU if there is one]")
    parser.add_argument(
        '--batch-size',
        type=int,
        default=1,
        help='largest number of consecutive images of one size in a batch [1]',
    )
    parser.add_argument(
        '--score-threshold',
        type=float,
        help='smallest score to draw and write [detection 0.3, classification 0]',
    )
    parser.add_argument(
        '--tile', type=int, metavar='PIXELS', help='predict on tiles of this size, and merge the predictions'
    )
    parser.add_argument(
        '--overlap',
        type=int,
        metavar='PIXELS',
        help='pixels that neighbouring tiles share [an eighth of a tile]',
    )
    parser.add_argument('--top-k', type=int, help='classes to write for each image, for classification [5]')
    return parser.parse_args()


class SpeedColumn(rich_progress.ProgressColumn):
    """Images and frames per second."""

    def render(self, task: rich_progress.Task) -> str:
        return f'{task.finished_speed or task.speed or 0:.2f}/s'


def predict(
    inferencer: Inferencer, sources: list[Source], out: Path, batch_size: int, info: dict[str, str]
) -> dict[Source, str]:
    """Predict and write; return the sources that could not be read, with reasons."""
    problems = {}
    columns = (
        '{task.description}',
        rich_progress.BarColumn(),
        rich_progress.MofNCompleteColumn(),
        SpeedColumn(),
        rich_progress.TimeRemainingColumn(),
    )
    with (
        PredictionWriter(out, inferencer, info) as writer,
        rich_progress.Progress(*columns, console=Console(stderr=True)) as progress,
    ):

        def report(source: Source, reason: str) -> None:
            if source not in problems:
                progress.console.print(
                    f'{source.path}: {reason}', markup=False, highlight=False, soft_wrap=True
                )
            problems[source] = reason

        task = progress.add_task(inferencer.task, total=num_pictures(sources))
        pictures = read_pictures(sources, inferencer.read, report)
        for batch in batches(pictures, batch_size, inferencer.needs_one_size):
            images = [picture.image for picture in batch]
            try:
                samples = inferencer.predict(images)
                for written in zip(batch, samples, inferencer.draw(images, samples)):
                    writer.write(*written)
            except ImageError as error:
                for picture in batch:
                    report(picture.source, str(error))
            progress.advance(task, len(batch))
        progress.update(task, completed=progress.tasks[task].total)  # also if images were skipped
    return problems


def main() -> None:
    args = parse_args()
    with errors_in_one_line():
        if bool(args.model) == bool(args.config) or bool(args.config) != bool(args.checkpoint):
            raise ValueError('give either --config and --checkpoint, or --model')
        out = args.out or Path('work_dirs', Path(args.model or args.config).stem, 'predictions')
        if args.batch_size < 1:
            raise ValueError(f'--batch-size must be at least 1, got {args.batch_size}')
        sources = find_sources(args.images, leave_out=out)
        check_writable(out)
        options = dict(
            device=args.device,
            score_threshold=args.score_threshold,
            top_k=args.top_k,
            tile=args.tile,
            overlap=args.overlap,
        )
        if args.model:
            inferencer = load(args.model, **options)
        else:
            inferencer = init_inferencer(args.config, args.checkpoint, **options)
        info = dict(model=args.model) if args.model else dict(config=args.config, checkpoint=args.checkpoint)
        problems = predict(inferencer, sources, out, args.batch_size, info)
    print(f'{inferencer.task}: {len(sources) - len(problems)} of {len(sources)} images and videos, in {out}')
    if problems:
        print('skipped, or read only in part:', *(source.path for source in problems), sep='\n  ')
        sys.exit(UNREADABLE)


if __name__ == '__main__':
    main()
