"""Compare exported models with what they were made of, on pictures: same answers? how large, how fast?

    python tools/analysis/benchmark_export.py photos --models CONFIG CHECKPOINT --models CONFIG2 CHECKPOINT2

exports every model to ONNX with free sizes, and runs it by onnxruntime and by torch, one picture at a time in
turn, each in the size that the config's test pipeline gives it. 'same' is the share of pixels with the same
label or segment; of detections with a score from 0.3 on, the share that the file has as well, of the same
class, with an IoU from 0.99 on and a score within 0.001; of classifiers, of pictures with the same class.
'difference' is what tools/export.py holds against its tolerance. Times are medians, of network and
post-processing, without reading and resizing.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision.ops import box_iou

from revcol_mm.analysis.machine import machine
from revcol_mm.apis import init_inferencer
from revcol_mm.apis.exported_model import open_onnx
from revcol_mm.apis.image_files import find_sources, read_pictures
from revcol_mm.apis.image_graph import ImageGraph, image_graph
from revcol_mm.config.command_line import check_writable
from revcol_mm.errors import errors_in_one_line

COUNTED = 0.3  # score of detections that are compared


def share_of_same(names: tuple[str, ...], outputs: list[Tensor], expected: list[Tensor]) -> float | None:
    """Share of the model's answers that the file gives as well; None if there are none.

    Args:
        names: Of the outputs.
        outputs: Of the file, for one picture.
        expected: Of the model.
    """
    found, wanted = (dict(zip(names, each)) for each in (outputs, expected))
    if 'segments' in names:
        return (found['segments'] == wanted['segments']).float().mean().item()
    if 'boxes' in names:
        counts = wanted['scores'][0] >= COUNTED
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
    """Milliseconds that a run takes, and its outputs."""
    start = time.perf_counter()
    outputs = run(image)
    spent = 1e3 * (time.perf_counter() - start)
    return spent, list(outputs) if isinstance(outputs, (list, tuple)) else [outputs]


@torch.inference_mode()
def compare(graph: ImageGraph, file: Path, images: list[Tensor]) -> dict[str, Any]:
    """Run a model and its file on images."""
    import onnx

    run, *_ = open_onnx(file, 'cpu')
    times, same, differences = [], [], []
    for index, image in enumerate([images[0], *images]):  # the first time of each is not counted
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
    """The comparison in Markdown."""
    lines = [
        '| model | task | opset | MiB | torch, ms | onnxruntime, ms | same | difference |',
        '|---' * 8 + '|',
    ]
    for row in rows:
        same = '' if row['same'] is None else f'{row["same"]:.2%}'
        lines.append(
            f'| {row["model"]} | {row["task"]} | {row["opset"]} | {row["mib"]:.1f} | {row["torch_ms"]:.0f} | '
            f'{row["onnxruntime_ms"]:.0f} | {same} | {row["difference"]:.0e} |'
        )
    return '\n'.join(lines)


def benchmark(config: str, checkpoint: str, pictures: list[str]) -> dict[str, Any]:
    """Export a model, and compare."""
    inferencer = init_inferencer(config, checkpoint, 'cpu')
    problems: list[str] = []
    sources = find_sources(pictures, leave_out=Path('nowhere'))
    images = [
        torch.from_numpy(inferencer.network_input(picture.image)[0]).permute(2, 0, 1)[None].float()
        for picture in read_pictures(sources, inferencer.read, lambda source, why: problems.append(why))
    ]
    if problems:
        raise ValueError(f'a picture cannot be read: {problems[0]}')
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, 'model.onnx')
        command = [sys.executable, '-m', 'revcol_mm.cli', 'export', config, checkpoint, '--format', 'onnx']
        done = subprocess.run(
            [*command, '--dynamic', '--out', str(file)], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise ValueError(f'{config} is not exported: {done.stderr.strip().splitlines()[-1]}')
        result = compare(image_graph(inferencer.model), file, images)
    return dict(model=Path(config).stem, task=inferencer.task, **result)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('pictures', nargs='+', metavar='PICTURES', help='files, folders or patterns')
    parser.add_argument('--models', nargs=2, action='append', required=True, metavar=('CONFIG', 'CHECKPOINT'))
    parser.add_argument('--out', type=Path, help='folder for benchmark_export.json')
    args = parser.parse_args()
    with errors_in_one_line():
        if args.out:
            check_writable(args.out)
        rows = []
        for config, checkpoint in args.models:
            rows.append(benchmark(config, checkpoint, args.pictures))
            print(f'\n{table(rows)}\n', flush=True)
        if args.out:
            report = dict(machine=machine(torch.device('cpu')), models=rows)
            (args.out / 'benchmark_export.json').write_text(json.dumps(report, indent=1) + '\n')


if __name__ == '__main__':
    main()
