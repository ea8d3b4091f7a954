"""How near to a trained network are its reversible blocks, and what do they save?

    python tools/analysis/benchmark_blocks.py CONFIG CHECKPOINT --blocks backbone.stages.2 --out work_dirs/b

takes the equal blocks of a module, as a ViT's 'backbone.layers' or a ResNet's 'backbone.layer3' (blocks that
change the shape, which come first, are left out), and what reaches them of test images. For every beta it
prints how far revcol_mm.models.ReversibleBlocks is from them: the norm of the difference, relative to that
of what the blocks give, and to that of what they change. Then it trains a step through them: storing all,
checkpointing every block, and reversibly; memory is the peak of live bytes, beyond weights, their gradients
and the input. Autocast makes checkpoints smaller where blocks give its type, but not what is kept of
reversible blocks.
"""

import argparse
import itertools
import statistics
import time
from contextlib import nullcontext
from functools import partial
from typing import Any, Callable

import torch
from matplotlib import pyplot as plt
from mmengine.config import Config
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from revcol_mm.analysis.command_line import add_image_arguments, make_parser, read_arguments, write_report
from revcol_mm.analysis.labelled_images import LabelledImages
from revcol_mm.analysis.machine import machine
from revcol_mm.apis import init_model
from revcol_mm.errors import errors_in_one_line
from revcol_mm.models import ReversibleBlocks
from revcol_mm.testing import peak_bytes

BETAS = (0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 0.004)


@torch.no_grad()
def reach(model: nn.Module, name: str, batch: dict[str, Any]) -> tuple[list[nn.Module], tuple]:
    """The last blocks of a module that keep the shape, and the arguments that reach the first of them.

    Raises:
        ValueError: If there is no such module, or it has no two such blocks one after the other.
    """
    if name not in dict(model.named_modules()):
        raise ValueError(
            f'--blocks {name}: the model has no such module; it has {", ".join(_holders(model))}'
        )
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
            f'--blocks {name} has {len(kept)} blocks at its end that keep the shape, and needs two; there '
            f'are {", ".join(_holders(model))}'
        )
    return [block for block, *_ in kept], kept[0][1]


def _keeps_shape(call: tuple[nn.Module, tuple, Any]) -> bool:
    _, (x, *_), output = call
    return isinstance(output, Tensor) and output.shape == x.shape


def _holders(model: nn.Module) -> list[str]:
    holders = (nn.Sequential, nn.ModuleList)
    return [
        name
        for name, module in model.backbone.named_modules(prefix='backbone')
        if isinstance(module, holders)
    ]


def distances(blocks: list[nn.Module], inputs: tuple, betas: list[float]) -> list[dict[str, float]]:
    """For every beta how far reversible blocks are from the blocks."""
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
    """Memory and time of a training step through the blocks, by how they train."""
    x, *arguments = inputs
    dtype = dict(bf16=torch.bfloat16, fp16=torch.float16).get(args.precision)

    def sequence(x: Tensor, call: Callable) -> Tensor:
        for block in blocks:
            x = call(block, x, *arguments)
        return x

    def step(run: Callable[[Tensor], Tensor]) -> None:
        with torch.autocast(x.device.type, dtype) if dtype else nullcontext():
            loss = run(x.detach().requires_grad_()).float().mean()
        loss.backward()

    runs = {
        'plain': partial(sequence, call=lambda block, *inputs: block(*inputs)),
        'checkpoint per block': partial(sequence, call=partial(checkpoint, use_reentrant=False)),
    }
    for beta in args.betas:
        reversible = ReversibleBlocks(blocks, beta).train()
        runs[f'reversible, beta {beta}'] = lambda x, reversible=reversible: reversible(x, *arguments)
    rows = []
    for name, run in runs.items():
        step(run)  # which makes room for gradients
        seconds = []
        for _ in range(args.repeats):
            started = time.perf_counter()
            step(run)
            if x.is_cuda:
                torch.cuda.synchronize(x.device)
            seconds.append(time.perf_counter() - started)
        rows.append(
            dict(
                mode=name,
                mib=peak_bytes(partial(step, run), x.device) / 2**20,
                seconds=statistics.median(seconds),
            )
        )
    return rows


def analyse(args: argparse.Namespace, cfg: Config) -> dict[str, Any]:
    """Compare and measure; returns the report."""
    images = LabelledImages(cfg, 'test', args.batch_size, args.size, args.batch_size, seed=args.seed)
    model = init_model(cfg, args.checkpoint, args.device)
    (batch,) = images.batches()
    blocks, inputs = reach(model, args.blocks, batch.data)
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
    """The report as two Markdown tables."""
    lines = ['| beta | difference / output | difference / change |', '|---|---|---|']
    lines += [
        f'| {row["beta"]} | {row["of_output"]:.2g} | {row["of_change"]:.2g} |' for row in report['distances']
    ]
    lines += ['', '| training | memory, MiB | step, s | step / plain |', '|---|---|---|---|']
    plain = report['steps'][0]['seconds']
    for row in report['steps']:
        lines.append(
            f'| {row["mode"]} | {row["mib"]:.1f} | {row["seconds"]:.3f} | {row["seconds"] / plain:.2f} |'
        )
    return '\n'.join(lines)


def plot(report: dict[str, Any]) -> plt.Figure:
    """Draw the distance and the memory against beta."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.6), layout='constrained')
    betas = [row['beta'] for row in report['distances']]
    for key, label in (('of_output', 'of what they give'), ('of_change', 'of what they change')):
        axes[0].loglog(betas, [row[key] for row in report['distances']], marker='o', label=label)
    axes[0].set_title(f'Distance from the {report["num_blocks"]} blocks, relative')
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
        '--blocks', required=True, metavar='MODULE', help='what has them, by its name in the model'
    )
    parser.add_argument(
        '--betas', nargs='+', type=float, default=BETAS, help=f'[{" ".join(map(str, BETAS))}]'
    )
    parser.add_argument('--precision', choices=('fp32', 'bf16', 'fp16'), default='fp32', help='[fp32]')
    parser.add_argument('--repeats', type=int, default=5, help='timed steps; the median counts [5]')
    with errors_in_one_line():
        args, cfg = read_arguments(parser)
        report = analyse(args, cfg)
    print(f'{report["num_blocks"]} blocks, {report["shape"]}, {report["precision"]}, {report["machine"]}\n')
    print(table(report))
    write_report(report, args.out, 'benchmark_blocks')
    if args.out:
        plot(report).savefig(args.out / 'benchmark_blocks.png', dpi=110)


if __name__ == '__main__':
    main()
