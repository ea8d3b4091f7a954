"""Memory and time of a training step: plain, checkpointing columns or blocks, and reversible.

    python tools/analysis/benchmark_reversible.py tiny --num-columns 4 8 16 32 --repeats 3 --out docs/figures

of a RevCol, or of the columns of another network that a config has, prints a table and writes it as JSON and
as a plot. Activation memory is the peak of live bytes in one step,
beyond weights, their gradients and the input: the allocator's on a GPU, those of all live tensors on a CPU.
Gradient errors are relative to storing all activations, with the same sums: the largest difference, relative
to the largest gradient of the same tensor, the worst of all parameters and the input. On a GPU a step's
kernels are counted, too, how often the CPU waits for it, and the milliseconds that the GPU computes, beside
which it waits for the CPU to start kernels; fp32 is without TF32 there. Of columns of another network the
start error is that of what they compute at first to what the network computes; all weights are random.
"""

import argparse
import copy
import json
import statistics
import time
from contextlib import nullcontext
from functools import partial
from itertools import product
from pathlib import Path
from typing import Sequence

import matplotlib
import torch
from mmengine.config import Config
from mmengine.registry import MODELS
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import apply_activation_checkpointing

from revcol_mm import RevCol
from revcol_mm.analysis.machine import machine
from revcol_mm.apis import pick_device
from revcol_mm.errors import errors_in_one_line
from revcol_mm.models import ColumnBackbone, ReversibleColumns
from revcol_mm.models.backbones.revcol import ARCHS
from revcol_mm.models.backbones.reversible_columns import StageLevel
from revcol_mm.models.layers import Column, Level
from revcol_mm.models.stage_modules import TokenStage, VitStage
from revcol_mm.models.stages import evaluating
from revcol_mm.testing import Launches, StoringChain, count_launches, gradients, peak_bytes, worst_errors

matplotlib.use('Agg')
import matplotlib.pyplot as plt

LAYER_SCALE = 0.3  # as in a trained model; with the initial 1e-6 the blocks, and their errors, would not show


MODES = ('plain', 'checkpoint per column', 'checkpoint per block', 'reversible')


def read_backbone(name: str) -> tuple[dict, int]:
    """A backbone by an arch's name or a config's path, and its number of columns.

    Raises:
        ValueError: If there is none.
    """
    if name in ARCHS:
        return dict(type='RevCol', arch=name), ARCHS[name]['num_columns']
    backbone = Config.fromfile(name).get('model', {}).get('backbone', {}) if Path(name).is_file() else {}
    if backbone.get('type') != 'ReversibleColumns':
        raise ValueError(f'{name} is none of {", ".join(ARCHS)}, and no config with ReversibleColumns')
    return backbone.to_dict(), backbone.get('num_columns', 2)


def build(backbone: dict, num_columns: int) -> ColumnBackbone:
    """A RevCol, or columns of another network, with random weights everywhere."""
    torch.manual_seed(0)
    if backbone['type'] == 'RevCol':
        arch = {**ARCHS[backbone['arch']], 'num_columns': num_columns}
        return RevCol(arch=arch, layer_scale_init_value=LAYER_SCALE)
    network = randomised(MODELS.build(copy.deepcopy(backbone['net'])))
    options = {name: value for name, value in backbone.items() if name not in ('type', 'net', 'init_cfg')}
    return ReversibleColumns(network, **{**options, 'num_columns': num_columns, 'save_memory': False})


@torch.no_grad()
def randomised(module: nn.Module) -> nn.Module:
    """The module, in which what begins at zero or one shows."""
    for param in module.parameters():
        param.add_(
            torch.randn_like(param), alpha=0.02 if param.ndim == 2 else 0.1 if param.ndim == 1 else 0.0
        )
    return module


def blocks(part: nn.Module) -> list[nn.Module]:
    """The blocks of a column or of a part of it, in their order."""
    if isinstance(part, Level):
        return list(part.blocks)
    holders = (Column, StageLevel, TokenStage, VitStage, nn.Sequential, nn.ModuleList)
    return (
        [each for child in part.children() for each in blocks(child)] if isinstance(part, holders) else [part]
    )


def checkpointed(model: ColumnBackbone, parts: Sequence[nn.Module]) -> ColumnBackbone:
    """The model with ordinary activation checkpointing of some of its modules."""
    apply_activation_checkpointing(model, check_fn=lambda module: any(module is part for part in parts))
    return model


def modes(plain: ColumnBackbone) -> dict[str, ColumnBackbone]:
    """Copies of a model that train in each of :data:`MODES`."""
    column, block, reversible = (copy.deepcopy(plain) for _ in range(3))
    checkpointed(column, column.columns)
    checkpointed(block, [each for column in block.columns for each in blocks(column)])
    reversible.save_memory = True
    return dict(zip(MODES, (plain, column, block, reversible)))


def start_error(model: ReversibleColumns, image: Tensor) -> float:
    """Largest difference of a feature to that of the network, the first column, relative to the largest."""
    with evaluating(model), torch.no_grad():
        columns = list(model.forward_columns(image))
    return worst_errors(*(dict(enumerate(features)) for features in (columns[-1], columns[0])))[0][0]


def measure(backbone: dict, num_columns: int, args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Measure one backbone in every mode; returns what the table shows, by mode."""
    model = build(backbone, num_columns).to(args.device)
    image = torch.randn(args.batch_size, 3, *args.size, device=args.device)
    at_start = {}
    if isinstance(model, ReversibleColumns):
        at_start['start_error'] = start_error(model, image)
        randomised(model)
    models = modes(model)
    dtype = dict(bf16=torch.bfloat16, fp16=torch.float16).get(args.precision)

    def autocast():
        return torch.autocast(image.device.type, dtype) if dtype else nullcontext()

    def step(model: ColumnBackbone) -> None:
        with autocast():
            loss = sum(feature.mean() for feature in model(image))
        loss.backward()

    with torch.no_grad():
        weights = [torch.randn_like(feature) for feature in models['plain'](image)]
    results = {}
    for mode, model in models.items():
        with autocast():
            grads = gradients(model, image, weights)
        if mode == 'plain':
            expected = grads
        if mode == 'reversible':
            model.chain_type = lambda links: StoringChain()
            with autocast():
                expected = gradients(model, image, weights)
            del model.chain_type
        renamed = dict(zip(expected, grads.values(), strict=True))  # checkpointing puts prefixes before names
        error, _ = worst_errors(renamed, expected)[0]
        for param in model.parameters():
            param.grad = torch.zeros_like(param)
        results[mode] = {'activation_mib': peak_bytes(partial(step, model), args.device) / 2**20}
        if image.is_cuda:
            results[mode].update(count_launches(partial(step, model))._asdict())
        if mode != 'plain':
            results[mode]['gradient_error'] = error
        if mode == 'reversible':
            results[mode].update(at_start)
    times = {mode: [] for mode in models}
    for _ in range(args.repeats):
        for mode, model in models.items():  # in turn, so that a machine that slows down slows all of them
            started = time.perf_counter()
            step(model)
            if image.is_cuda:
                torch.cuda.synchronize(image.device)
            times[mode].append(time.perf_counter() - started)
    for mode in models:
        results[mode]['step_seconds'] = statistics.median(times[mode])
    return results


def table(report: dict) -> str:
    """The report as a Markdown table."""
    counted = [name for name in Launches._fields if name in report['rows'][0]['modes']['plain']]
    heads = ['arch', 'columns', 'mode', 'activations, MiB', 'step, s', 'step / plain', 'gradient error']
    has_start = report.get('has_start', False)
    heads += [*counted, *(['start error'] if has_start else [])]
    lines = [f'| {" | ".join(heads)} |', '|---' * len(heads) + '|']
    for row in report['rows']:
        plain = row['modes']['plain']['step_seconds']
        for mode, result in row['modes'].items():
            seconds = result['step_seconds']
            error = f'{result["gradient_error"]:.0e}' if 'gradient_error' in result else ''
            cells = [row['arch'], row['num_columns'], mode, f'{result["activation_mib"]:.0f}']
            cells += [f'{seconds:.{2 if seconds >= 0.1 else 4}f}', f'{seconds / plain:.2f}', error]
            cells += [result[name] for name in counted]
            if has_start:
                cells.append(f'{result["start_error"]:.0e}' if 'start_error' in result else '')
            lines.append(f'| {" | ".join(map(str, cells))} |')
    return '\n'.join(lines)


def plot(report: dict, path: Path) -> None:
    """Draw memory and time against the rows of the report."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.6), layout='constrained')
    labels = [f'{row["arch"]}\n{row["num_columns"]} columns' for row in report['rows']]
    for axis, key, title in zip(
        axes, ('activation_mib', 'step_seconds'), ('Activation memory, MiB', 'Training step, s')
    ):
        for mode, marker in zip(MODES, 'soD^'):
            axis.plot(labels, [row['modes'][mode][key] for row in report['rows']], marker=marker, label=mode)
        axis.set_title(title)
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
    axes[0].legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        'archs', nargs='+', metavar='ARCH', help=f'{", ".join(ARCHS)}; or a config with ReversibleColumns'
    )
    parser.add_argument('--num-columns', nargs='+', type=int, help="of each arch; default: the arch's own")
    parser.add_argument('--size', nargs=2, type=int, default=(512, 512), metavar=('H', 'W'))
    parser.add_argument('--batch-size', type=int, default=1)
    parser.add_argument('--precision', choices=('fp32', 'tf32', 'bf16', 'fp16'), default='fp32')
    parser.add_argument('--repeats', type=int, default=5, help='timed steps of each mode; the median counts')
    parser.add_argument('--device', help="such as 'cpu' or 'cuda:1' [a GPU where there is one]")
    parser.add_argument('--out', type=Path, help='folder for benchmark_reversible.json and .png')
    args = parser.parse_args()
    if min(*args.size, args.batch_size, args.repeats, *(args.num_columns or [1])) < 1:
        parser.error('sizes and counts start at 1')
    try:
        args.device = pick_device(args.device)
    except ValueError as error:
        parser.error(str(error))
    if args.precision == 'tf32' and args.device.type != 'cuda':
        parser.error('tf32 is for GPUs alone')
    with errors_in_one_line():
        backbones = {name: read_backbone(name) for name in args.archs}
    tf32 = args.precision == 'tf32'
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32

    report = dict(
        machine=machine(args.device),
        size=args.size,
        batch_size=args.batch_size,
        precision=args.precision,
        has_start=any(backbone['type'] != 'RevCol' for backbone, _ in backbones.values()),
        rows=[],
    )
    print(f'{args.batch_size} x 3 x {args.size[0]} x {args.size[1]}, {args.precision}, {report["machine"]}\n')
    for name, num_columns in product(args.archs, args.num_columns or [None]):
        backbone, own_columns = backbones[name]
        number = num_columns or own_columns
        row = dict(arch=Path(name).stem, num_columns=number, modes=measure(backbone, number, args))
        report['rows'].append(row)
        lines = table({**report, 'rows': [row]}).splitlines()
        print('\n'.join(lines if len(report['rows']) == 1 else lines[2:]), flush=True)
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / 'benchmark_reversible.json').write_text(json.dumps(report, indent=1) + '\n')
        plot(report, args.out / 'benchmark_reversible.png')


if __name__ == '__main__':
    main()
