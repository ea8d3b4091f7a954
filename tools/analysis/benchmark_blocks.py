"""Compare the reversible blocks of a trained network with its own blocks: difference, memory and time.

    python tools/analysis/benchmark_blocks.py CONFIG CHECKPOINT --blocks backbone.stages.2 --out work_dirs/b

takes the blocks of a module, such as a ViT's 'backbone.layers' or a ResNet's 'backbone.layer3' (without
blocks at its beginning that change the shape), and the features of test images that reach them. For every
beta it prints the norm of the difference between the outputs of revcol_mm.models.ReversibleBlocks and of the
blocks, relative to the output of the blocks and to the change that they make to their input. Then it measures
a training step through the blocks that stores all activations, one with activation checkpointing of every
block, and reversible ones. Memory is the peak of live bytes beyond weights, gradients and the input. Autocast
makes the checkpoints smaller if blocks return its type, but not the state that reversible blocks keep.
"""

import argparse
import itertools
import statistics
from functools import partial
from typing import Any, Callable

import torch
from matplotlib.figure import Figure
from mmengine.config import Config
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from revcol_mm.analysis.command_line import add_image_arguments, make_parser, read_arguments, write_report
from revcol_mm.analysis.labelled_images import LabelledImages
from revcol_mm.analysis.machine import machine
from revcol_mm.analysis.speed import DTYPES, autocast, time_in_turn
from revcol_mm.apis import init_model
from revcol_mm.errors import errors_in_one_line
from revcol_mm.markdown_table import markdown_table
from revcol_mm.models import ReversibleBlocks
from revcol_mm.testing import peak_bytes

BETAS = (0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 0.004)


@torch.no_grad()
def find_blocks(model: nn.Module, name: str, batch: dict[str, Any]) -> tuple[list[nn.Module], tuple]:
    """Return the blocks at the end of a module that keep the shape, and the arguments of the first of them.

    Raises:
        ValueError: If the module does not exist or has fewer than two such blocks.
    """
    containers = ', '.join(
        module_name
        for module_name, module in model.backbone.named_modules(prefix='backbone')
        if isinstance(module, (nn.Sequential, nn.ModuleList))
    )
    if name not in dict(model.named_modules()):
        raise ValueError(f'--blocks {name}: the model has no such module; it has {containers}')
    calls = []
    hooks = [
        block.register_forward_hook(lambda block, inputs, output: calls.append((block, inputs, output)))
        for block in model.get_submodule(name).children()
    ]
    model.backbone(model.data_preprocessor(batch)['inputs'])
    for hook in hooks:
        hook.remove()
    kept = list(itertools.takewhile(_keeps_shape, reversed(calls)))[::-1]
    if len(kept) < 2:
        raise ValueError(
            f'--blocks {name} has {len(kept)} blocks at its end that keep the shape, but at least 2 are '
            f'needed; other modules are {containers}'
        )
    return [block for block, *_ in kept], kept[0][1]


def _keeps_shape(call: tuple[nn.Module, tuple, Any]) -> bool:
    _, (x, *_), output = call
    return isinstance(output, Tensor) and output.shape == x.shape


def distances(blocks: list[nn.Module], inputs: tuple, betas: list[float]) -> list[dict[str, float]]:
    """Compare the outputs of reversible blocks with those of the blocks for every beta."""
    x, *arguments = inputs
    with torch.no_grad():
        expected = x
        for block in blocks:
            expected = block(expected, *arguments)
        rows = []
        for beta in betas:
            difference = (ReversibleBlocks(blocks, beta).eval()(x, *arguments) - expected).norm()
            rows.append(
                dict(
                    beta=beta,
                    of_output=(difference / expected.norm()).item(),
                    of_change=(difference / (expected - x).norm()).item(),
                )
            )
    return rows


def measure(blocks: list[nn.Module], inputs: tuple, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure memory and time of a training step: storing all, checkpointing blocks, and reversible."""
    x, *arguments = inputs

    def sequence(x: Tensor, call: Callable) -> Tensor:
        for block in blocks:
            x = call(block, x, *arguments)
        return x

    def step(run: Callable[[Tensor], Tensor]) -> None:
        with autocast(x.device, args.precision):
            loss = run(x.detach().requires_grad_()).float().mean()
        loss.backward()

    runs = {
        'plain': partial(sequence, call=lambda block, *inputs: block(*inputs)),
        'checkpoint per block': partial(sequence, call=partial(checkpoint, use_reentrant=False)),
    }
    for beta in args.betas:
        reversible = ReversibleBlocks(blocks, beta).train()
        runs[f'reversible, beta {beta}'] = lambda x, reversible=reversible: reversible(x, *arguments)
    steps = {name: partial(step, run) for name, run in runs.items()}
    for run in steps.values():
        run()  # allocates the gradients of the weights, which do not count
    memory = {name: peak_bytes(run, x.device) / 2**20 for name, run in steps.items()}
    times = time_in_turn(steps, args.repeats, x.device)
    return [
        dict(mode=name, mib=memory[name], seconds=statistics.median(seconds))
        for name, seconds in times.items()
    ]


def analyse(args: argparse.Namespace, cfg: Config) -> dict[str, Any]:
    """Run all measurements and return the report."""
    images = LabelledImages(cfg, 'test', args.batch_size, args.size, args.batch_size, seed=args.seed)
    model = init_model(cfg, args.checkpoint, args.device)
    (batch,) = images.batches()
    blocks, inputs = find_blocks(model, args.blocks, batch.data)
    return dict(
        config=args.config,
        checkpoint=args.checkpoint,
        blocks=args.blocks,
        num_blocks=len(blocks),
        shape=list(inputs[0].shape),
        precision=args.precision,
        machine=machine(inputs[0].device),
        distances=distances(blocks, inputs, args.betas),
        steps=measure(blocks, inputs, args),
    )


def table(report: dict[str, Any]) -> str:
    """Format the report as two Markdown tables."""
    distances = markdown_table(
        ['beta', 'difference / output', 'difference / change'],
        [[row['beta'], f'{row["of_output"]:.2g}', f'{row["of_change"]:.2g}'] for row in report['distances']],
    )
    plain = report['steps'][0]['seconds']
    steps = markdown_table(
        ['training', 'memory, MiB', 'step, s', 'step / plain'],
        [
            [row['mode'], f'{row["mib"]:.1f}', f'{row["seconds"]:.3f}', f'{row["seconds"] / plain:.2f}']
            for row in report['steps']
        ],
    )
    return f'{distances}\n\n{steps}'


def plot(report: dict[str, Any]) -> Figure:
    """Draw the differences and the memory over beta."""
    figure = Figure(figsize=(10, 3.6), layout='constrained')
    axes = figure.subplots(1, 2)
    betas = [row['beta'] for row in report['distances']]
    for key, label in (('of_output', 'relative to the output'), ('of_change', 'relative to the change')):
        axes[0].loglog(betas, [row[key] for row in report['distances']], marker='o', label=label)
    axes[0].set_title(f'Difference from the {report["num_blocks"]} blocks')
    plain, checkpointed, *reversible = report['steps']
    axes[1].semilogx(betas, [row['mib'] for row in reversible], marker='o', label='reversible')
    for row, style in ((plain, '-'), (checkpointed, '--')):
        axes[1].axhline(row['mib'], color='grey', linestyle=style, label=row['mode'])
    axes[1].set_title(f'Memory of a step, MiB, {report["precision"]}')
    axes[1].set_ylim(bottom=0)
    for axis in axes:
        axis.set_xlabel('beta')
        axis.grid(alpha=0.3)
        axis.legend()
    return figure


def main() -> None:
    parser = make_parser(__doc__)
    add_image_arguments(parser, batch_size=4)
    parser.add_argument(
        '--blocks', required=True, metavar='MODULE', help='name of the module that contains the blocks'
    )
    parser.add_argument(
        '--betas', nargs='+', type=float, default=BETAS, help=f'[{" ".join(map(str, BETAS))}]'
    )
    parser.add_argument('--precision', choices=DTYPES, default='fp32', help='precision of autocast [fp32]')
    parser.add_argument('--repeats', type=int, default=5, help='timed steps, whose median is reported [5]')
    with errors_in_one_line():
        args, cfg = read_arguments(parser)
        report = analyse(args, cfg)
    print(f'{report["num_blocks"]} blocks, {report["shape"]}, {report["precision"]}, {report["machine"]}\n')
    print(table(report))
    write_report(report, args.out, 'benchmark_blocks', plot)


if __name__ == '__main__':
    main()
