"""Compare exported models with the original models on pictures: predictions, file size and speed.

    python tools/analysis/benchmark_export.py --models CONFIG CHECKPOINT --models CONFIG2 CHECKPOINT2

exports every model to ONNX with dynamic sizes and runs it with onnxruntime and with torch in turn, on one
picture at a time in the size of the config's test pipeline. The pictures are from the config's test data,
evenly spread over them, unless --pictures names others. 'same' is the share of equal predictions.
Segmentation: the share of pixels with the same label or segment. Detection: the share of torch's detections
with a score of at least 0.3 for which the exported model has one of the same class, with an IoU of at least
0.99 and a score within 0.001. Classification: the share of pictures with the same class. 'difference' is the
error that tools/export.py compares with its tolerance. Times are medians of network and post-processing,
without loading and resizing.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import DATASETS, DefaultScope
from torch import Tensor
from torchvision.ops import box_iou

from revcol_mm.analysis.command_line import write_report
from revcol_mm.analysis.labelled_images import innermost_dataset
from revcol_mm.analysis.machine import machine
from revcol_mm.apis import init_inferencer
from revcol_mm.apis.image_files import find_sources, read_pictures
from revcol_mm.config.command_line import check_writable, read_config
from revcol_mm.errors import errors_in_one_line
from revcol_mm.export.build_image_graph import build_image_graph
from revcol_mm.export.exported_file import open_onnx
from revcol_mm.export.image_graph import ImageGraph
from revcol_mm.markdown_table import markdown_table
from revcol_mm.preflight import check_files

MIN_SCORE = 0.3  # detections with lower scores are not compared


def share_of_same(names: tuple[str, ...], outputs: list[Tensor], expected: list[Tensor]) -> float | None:
    """Return the share of predictions of a model that its exported file shares; None without predictions.

    Args:
        names: Names of the outputs.
        outputs: Outputs of the exported file for one picture.
        expected: Outputs of the model.
    """
    found, wanted = (dict(zip(names, each)) for each in (outputs, expected))
    if 'segments' in names:
        return (found['segments'] == wanted['segments']).float().mean().item()
    if 'boxes' in names:
        counts = wanted['scores'][0] >= MIN_SCORE
        if not counts.any():
            return None
        same = box_iou(wanted['boxes'][0][counts], found['boxes'][0]) >= 0.99
        same &= wanted['labels'][0][counts, None] == found['labels'][0]
        same &= (wanted['scores'][0][counts, None] - found['scores'][0]).abs() <= 1e-3
        return same.any(1).float().mean().item()
    if 'labels' in names:
        return (found['labels'] == wanted['labels']).float().mean().item()
    return float(found['scores'].argmax() == wanted['scores'].argmax())


def timed(run: Callable[[Tensor], Any], image: Tensor) -> tuple[float, list[Tensor]]:
    """Run a model on an image; return the milliseconds that it took, and its outputs."""
    start = time.perf_counter()
    outputs = run(image)
    spent = 1e3 * (time.perf_counter() - start)
    return spent, list(outputs) if isinstance(outputs, (list, tuple)) else [outputs]


@torch.inference_mode()
def compare(graph: ImageGraph, file: Path, images: list[Tensor]) -> dict[str, Any]:
    """Run a model and its exported file on images and return the measured part of a row of the report."""
    import onnx

    run = open_onnx(file, 'cpu').run
    times, same, differences = [], [], []
    for index, image in enumerate([images[0], *images]):  # the first run is a warm-up
        (ours, expected), (theirs, outputs) = timed(graph, image), timed(run, image)
        if index:
            times.append((ours, theirs))
            same.append(share_of_same(graph.output_names, outputs, expected))
            differences.append(graph.difference(outputs, image))
    torch_times, onnx_times = zip(*times)
    counted = [share for share in same if share is not None]
    return dict(
        opset=next(each.version for each in onnx.load(file).opset_import if not each.domain),
        mib=sum(part.stat().st_size for part in file.parent.glob(f'{file.name}*')) / 2**20,
        torch_ms=statistics.median(torch_times),
        onnxruntime_ms=statistics.median(onnx_times),
        same=statistics.mean(counted) if counted else None,
        difference=max(differences),
        pictures=len(images),
        size='x'.join(map(str, images[0].shape[2:])),
    )


def table(rows: list[dict[str, Any]]) -> str:
    """Format the comparison as a Markdown table."""
    heads = ['model', 'task', 'opset', 'MiB', 'torch, ms', 'onnxruntime, ms', 'same', 'difference']
    cells = [
        [
            *(row['model'], row['task'], row['opset'], f'{row["mib"]:.1f}'),
            *(f'{row["torch_ms"]:.0f}', f'{row["onnxruntime_ms"]:.0f}'),
            *('' if row['same'] is None else f'{row["same"]:.2%}', f'{row["difference"]:.0e}'),
        ]
        for row in rows
    ]
    return markdown_table(heads, cells)


def pictures_for_testing(cfg: Config, number: int) -> list[str]:
    """Return the paths of pictures that are evenly spread over the test data of a config.

    Raises:
        FileNotFoundError: If the data are missing.
    """
    check_files(cfg, ('test_dataloader',), evaluators=False)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        dataset = DATASETS.build(innermost_dataset(cfg.test_dataloader.dataset))
    indices = torch.linspace(0, len(dataset) - 1, min(number, len(dataset))).round().int().tolist()
    return [dataset.get_data_info(index)['img_path'] for index in indices]


def benchmark(config: str, checkpoint: str, pictures: list[str] | None, number: int) -> dict[str, Any]:
    """Export a model and compare it with the exported file on named pictures or some of its test data."""
    pictures = pictures or pictures_for_testing(read_config(config), number)
    inferencer = init_inferencer(config, checkpoint, 'cpu')
    problems: list[str] = []
    sources = find_sources(pictures)
    images = [
        torch.from_numpy(inferencer.network_input(picture.image)[0]).permute(2, 0, 1)[None].float()
        for picture in read_pictures(sources, inferencer.read, lambda source, why: problems.append(why))
    ]
    if problems:
        raise ValueError(f'cannot read a picture: {problems[0]}')
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, 'model.onnx')
        command = [sys.executable, '-m', 'revcol_mm.cli', 'export', config, checkpoint, '--format', 'onnx']
        done = subprocess.run(
            [*command, '--dynamic', '--out', str(file)], capture_output=True, text=True, check=False
        )
        if done.returncode:
            reason = (done.stderr.strip() or f'exit status {done.returncode}').splitlines()[-1]
            raise ValueError(f'cannot export {config}: {reason}')
        result = compare(build_image_graph(inferencer.model), file, images)
    return dict(model=Path(config).stem, task=inferencer.task, **result)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--models', nargs=2, action='append', required=True, metavar=('CONFIG', 'CHECKPOINT'))
    parser.add_argument(
        '--pictures',
        nargs='+',
        metavar='PICTURES',
        help="files, folders or patterns [the config's test data]",
    )
    parser.add_argument('--num-pictures', type=int, default=20, help='from the test data [%(default)s]')
    parser.add_argument('--out', type=Path, help='folder for benchmark_export.json')
    args = parser.parse_args()
    if args.num_pictures < 1:
        parser.error(f'--num-pictures must be at least 1, got {args.num_pictures}')
    with errors_in_one_line():
        if args.out:
            check_writable(args.out)
        rows = []
        for config, checkpoint in args.models:
            rows.append(benchmark(config, checkpoint, args.pictures, args.num_pictures))
            print(f'\n{table(rows)}\n', flush=True)
            report = dict(machine=machine(torch.device('cpu')), models=rows)
            write_report(report, args.out, 'benchmark_export')


if __name__ == '__main__':
    main()
