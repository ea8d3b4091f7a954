"""Compare training steps that are plain, checkpoint columns or blocks, or are reversible: memory and time.

    python tools/analysis/benchmark_reversible.py tiny --num-columns 4 8 16 32 --repeats 3 --out docs/figures

takes a RevCol, or a config whose backbone is ReversibleColumns or a network to make columns of, such as
mmseg::segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py. It prints a table and writes it as JSON and as
a plot. All weights are random.

Activation memory is the peak of live bytes in one step beyond weights, gradients and the input, as counted by
the allocator on a GPU and by the profiler on a CPU. The gradient error compares with a step that stores all
activations and adds with the same exact sums: the largest difference in a tensor relative to its largest
gradient, for the worst tensor among all parameters and the input. On a GPU the table also has the number of
kernels of a step, how often the CPU waits for the GPU, and the milliseconds during which kernels run; fp32 is
without TF32 there. For columns of another network the start error is the relative difference between the
initial features of the last column and of the first, which is the network.
"""

import argparse
import copy
import statistics
from functools import partial
from itertools import product
from pathlib import Path
from typing import Sequence

import torch
from matplotlib.figure import Figure
from mmengine.config import Config
from mmengine.hub import get_config
from mmengine.registry import MODELS
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import apply_activation_checkpointing

from revcol_mm import RevCol
from revcol_mm.analysis.command_line import add_device_argument, write_report
from revcol_mm.analysis.machine import machine
from revcol_mm.analysis.speed import autocast, time_in_turn
from revcol_mm.apis import pick_device
from revcol_mm.config.command_line import check_writable
from revcol_mm.errors import errors_in_one_line
from revcol_mm.markdown_table import markdown_table
from revcol_mm.models import ColumnBackbone, ReversibleColumns
from revcol_mm.models.backbones.revcol import ARCHS
from revcol_mm.models.layers import Column, Level, StageLevel
from revcol_mm.models.stage_modules import TokenStage, VitStage
from revcol_mm.models.stages import evaluating
from revcol_mm.testing import Launches, StoringChain, count_launches, gradients, peak_bytes, worst_errors

LAYER_SCALE = 0.3  # as in a trained model; the initial 1e-6 would hide the blocks and their errors
MODES = ('plain', 'checkpoint per column', 'checkpoint per block', 'reversible')


def read_backbone(name: str) -> tuple[dict, int]:
    """Return the config of a backbone of columns, given an arch or a config, and its number of columns.

    Raises:
        ValueError: If the name is neither an arch nor a config with another backbone than RevCol.
    """
    if name in ARCHS:
        return dict(type='RevCol', arch=name), ARCHS[name]['num_columns']
    if '::' not in name and not Path(name).is_file():
        raise ValueError(f'{name} is neither one of {", ".join(ARCHS)} nor a config')
    cfg = get_config(name) if '::' in name else Config.fromfile(name)
    backbone = cfg.get('model', {}).get('backbone', {})
    if backbone.get('type') in (None, 'RevCol'):
        raise ValueError(f'{name} has no backbone other than RevCol: give an arch, {", ".join(ARCHS)}')
    if backbone.type != 'ReversibleColumns':
        scope = '' if '.' in backbone.type else f'{cfg.default_scope}.'
        net = dict(backbone.to_dict(), type=scope + backbone.type)
        if 'pretrained' in net:  # timm would download the weights
            net['pretrained'] = False
        return dict(type='ReversibleColumns', net=net), 2
    return backbone.to_dict(), backbone.get('num_columns', 2)


def build(backbone: dict, num_columns: int) -> ColumnBackbone:
    """Build a RevCol, or columns of another network, with random weights."""
    torch.manual_seed(0)
    if backbone['type'] == 'RevCol':
        arch = {**ARCHS[backbone['arch']], 'num_columns': num_columns}
        return RevCol(arch=arch, layer_scale_init_value=LAYER_SCALE)
    network = MODELS.build(copy.deepcopy(backbone['net']))
    randomise(network)
    options = {name: value for name, value in backbone.items() if name not in ('type', 'net', 'init_cfg')}
    return ReversibleColumns(network, **{**options, 'num_columns': num_columns, 'save_memory': False})


@torch.no_grad()
def randomise(module: nn.Module) -> None:
    """Add noise to matrices and vectors, because those initialised to zero or one would hide errors."""
    for param in module.parameters():
        param.add_(
            torch.randn_like(param), alpha=0.02 if param.ndim == 2 else 0.1 if param.ndim == 1 else 0.0
        )


def blocks(part: nn.Module) -> list[nn.Module]:
    """Return the blocks of a column, or of a part of one, in order."""
    if isinstance(part, Level):
        return list(part.blocks)
    if isinstance(part, (Column, StageLevel, TokenStage, VitStage, nn.Sequential, nn.ModuleList)):
        return [block for child in part.children() for block in blocks(child)]
    return [part] if any(True for _ in part.parameters()) else []


def add_checkpointing(model: ColumnBackbone, parts: Sequence[nn.Module]) -> None:
    """Apply activation checkpointing to some modules of a model."""
    apply_activation_checkpointing(model, check_fn=lambda module: any(module is part for part in parts))


def modes(plain: ColumnBackbone) -> dict[str, ColumnBackbone]:
    """Return copies of a model that train in each of :data:`MODES`."""
    column, block, reversible = (copy.deepcopy(plain) for _ in range(3))
    add_checkpointing(column, column.columns)
    add_checkpointing(block, [each for column in block.columns for each in blocks(column)])
    reversible.save_memory = True
    return dict(zip(MODES, (plain, column, block, reversible)))


def start_error(model: ReversibleColumns, image: Tensor) -> float:
    """Return the relative difference between the last column and the first, which is the network itself."""
    with evaluating(model), torch.no_grad():
        columns = list(model.forward_columns(image))
    return worst_errors(*(dict(enumerate(features)) for features in (columns[-1], columns[0])))[0][0]


def measure(backbone: dict, num_columns: int, args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Measure one backbone and return the results of every mode."""
    model = build(backbone, num_columns).to(args.device)
    image = torch.randn(args.batch_size, 3, *args.size, device=args.device)
    at_start = {}
    if isinstance(model, ReversibleColumns):
        at_start['start_error'] = start_error(model, image)
        randomise(model)
    models = modes(model)

    def step(model: ColumnBackbone) -> None:
        with autocast(args.device, args.precision):
            loss = sum(feature.mean() for feature in model(image))
        loss.backward()

    with torch.no_grad():
        weights = [torch.randn_like(feature) for feature in models['plain'](image)]
    results = {}
    for mode, model in models.items():
        with autocast(args.device, args.precision):
            grads = gradients(model, image, weights)
        if mode == 'plain':
            expected = grads
        if mode == 'reversible':
            model.chain_type = lambda links: StoringChain()
            with autocast(args.device, args.precision):
                expected = gradients(model, image, weights)
            del model.chain_type
        renamed = dict(zip(expected, grads.values(), strict=True))  # checkpointing adds prefixes to names
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
    steps = {mode: partial(step, model) for mode, model in models.items()}
    for mode, seconds in time_in_turn(steps, args.repeats, args.device).items():
        results[mode]['step_seconds'] = statistics.median(seconds)
    return results


def table(report: dict) -> str:
    """Format the report as a Markdown table."""
    counted = [name for name in Launches._fields if name in report['rows'][0]['modes']['plain']]
    heads = ['arch', 'columns', 'mode', 'activations, MiB', 'step, s', 'step / plain', 'gradient error']
    has_start = report.get('has_start', False)
    heads += [*counted, *(['start error'] if has_start else [])]
    rows = []
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
            rows.append(cells)
    return markdown_table(heads, rows)


def plot(report: dict) -> Figure:
    """Draw the memory and the time against the number of columns, or of the archs side by side."""
    groups: dict[str, list[dict]] = {}
    for row in report['rows']:
        groups.setdefault(row['arch'], []).append(row)
    against_columns = len(groups) < len(report['rows'])
    if not against_columns:
        groups = {'': report['rows']}
    figure = Figure(figsize=(10, 3.6 * len(groups)), layout='constrained')
    for axes, (arch, rows) in zip(figure.subplots(len(groups), 2, squeeze=False), groups.items()):
        labels = [str(row['num_columns' if against_columns else 'arch']) for row in rows]
        for axis, key, title in zip(
            axes, ('activation_mib', 'step_seconds'), ('activation memory, MiB', 'training step, s')
        ):
            for mode, marker in zip(MODES, 'soD^'):
                axis.plot(labels, [row['modes'][mode][key] for row in rows], marker=marker, label=mode)
            axis.set_title(f'{arch}\n{title}' if against_columns else title)
            axis.set_xlabel('number of columns' if against_columns else '')
            axis.set_ylim(bottom=0)
            axis.grid(alpha=0.3)
        axes[0].legend()
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        'archs', nargs='+', metavar='ARCH', help=f'{", ".join(ARCHS)}, or a config with another backbone'
    )
    parser.add_argument('--num-columns', nargs='+', type=int, help="numbers of columns [the arch's own]")
    parser.add_argument('--size', nargs=2, type=int, default=(512, 512), metavar=('H', 'W'))
    parser.add_argument('--batch-size', type=int, default=1)
    parser.add_argument('--precision', choices=('fp32', 'tf32', 'bf16', 'fp16'), default='fp32')
    parser.add_argument('--repeats', type=int, default=5, help='timed steps, whose median is reported')
    add_device_argument(parser)
    parser.add_argument('--out', type=Path, help='folder for benchmark_reversible.json and .png')
    args = parser.parse_args()
    if min(*args.size, args.batch_size, args.repeats, *(args.num_columns or [1])) < 1:
        parser.error('sizes and counts must be at least 1')
    with errors_in_one_line():
        args.device = pick_device(args.device)
        if args.precision == 'tf32' and args.device.type != 'cuda':
            raise ValueError('tf32 requires a GPU')
        backbones = {name: read_backbone(name) for name in args.archs}
        if args.out:
            check_writable(args.out)
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
    write_report(report, args.out, 'benchmark_reversible', plot)


if __name__ == '__main__':
    main()
