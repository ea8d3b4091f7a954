"""Estimate what a training will need: memory on each GPU, the number of GPUs, and days.

    python tools/analysis/plan_training.py configs/dino_revcol_h_objects365.py --gpus 64 --shape 1200 2000
    --mean-shape 1000 1500 --num-images 1742292

prints a table for DDP and FullyShardedRunner, each with and without save_memory. Weights, gradients and
optimizer state are counted in float32. Activations are extrapolated from three training steps of models with
fewer channels on small images with 7 objects. They are measured on --device; on a CPU, deformable attention
counts with the memory of its CUDA kernel. The CUDA context, workspaces of libraries and fragmentation are not
included: leave 10 % free. Days are the FLOPs of all images divided by the peak of the GPUs times the assumed
utilisation, which has to cover communication and data loading until it is measured.
"""

import argparse
from math import ceil
from typing import Any, Iterator

from mmengine.config import Config

from revcol_mm.analysis.command_line import make_parser, read_arguments, write_report
from revcol_mm.analysis.training_plan import (
    Memory,
    count_parameters,
    estimate_activations,
    training_flops,
    training_memory,
)
from revcol_mm.apis import pick_device
from revcol_mm.errors import errors_in_one_line
from revcol_mm.markdown_table import markdown_table

NUMBERS_OF_GPUS = [2**power for power in range(11)]


def parse_args() -> tuple[argparse.Namespace, Config]:
    parser = make_parser(__doc__)
    size = dict(nargs=2, type=int, metavar=('H', 'W'))
    parser.add_argument('--gpus', type=int, required=True, metavar='N')
    parser.add_argument(
        '--shape', **size, required=True, help='largest training image, which determines memory'
    )
    parser.add_argument(
        '--mean-shape', **size, help='average training image, which determines time [--shape]'
    )
    parser.add_argument('--num-images', type=int, help='images per epoch, needed if the config counts epochs')
    parser.add_argument('--gpu-memory', type=float, default=80, metavar='GIB', help='memory of a GPU [80]')
    parser.add_argument(
        '--tflops', type=float, default=156, help='peak TFLOPS of a GPU [156, that of an A100 with TF32]'
    )
    parser.add_argument('--utilisation', type=float, default=0.3, help='average share of the peak [0.3]')
    parser.add_argument('--device', default='cpu', help='device to measure activations on [cpu]')
    args, cfg = read_arguments(parser)
    sizes = (args.gpus, *args.shape, *(args.mean_shape or ()), args.num_images or 1)
    if min(sizes) < 1 or args.gpu_memory <= 0 or args.tflops <= 0 or not 0 < args.utilisation <= 1:
        parser.error('sizes and counts must be at least 1, and the utilisation above 0 and at most 1')
    return args, cfg


def count_images(cfg: Config, args: argparse.Namespace) -> int:
    """Return the number of images of the whole training."""
    if 'max_iters' in cfg.train_cfg:
        if args.num_images is not None:
            raise ValueError(f'{cfg.filename} counts iterations, not epochs: leave out --num-images')
        return cfg.train_cfg.max_iters * cfg.train_dataloader.batch_size * args.gpus
    if args.num_images is None:
        raise ValueError(f'{cfg.filename} trains for {cfg.train_cfg.max_epochs} epochs: give --num-images')
    return cfg.train_cfg.max_epochs * args.num_images


def plan(cfg: Config, args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield the rows of the table."""
    counts, num_images, device = count_parameters(cfg), count_images(cfg, args), pick_device(args.device)
    batch_size, optimizer = cfg.train_dataloader.batch_size, cfg.optim_wrapper.optimizer.type
    for save_memory in (False, True):
        activations = estimate_activations(cfg, args.shape, save_memory, counts, device=device)
        flops = training_flops(cfg, args.mean_shape or args.shape, save_memory)
        for sharded in (False, True):

            def memory(num_gpus: int, sharded: bool = sharded, activations: int = activations) -> Memory:
                return training_memory(counts, activations, batch_size, num_gpus, sharded, optimizer)

            available = args.gpu_memory * 0.9 * 2**30
            yield dict(
                how='FullyShardedRunner' if sharded else 'DDP',
                save_memory=save_memory,
                parameters=counts.total,
                memory=memory(args.gpus)._asdict(),
                fewest_gpus=next((n for n in NUMBERS_OF_GPUS if sum(memory(n)) <= available), None),
                flops_per_image=flops,
                iterations=ceil(num_images / batch_size / args.gpus),
                days=num_images * flops / (args.gpus * args.tflops * 1e12 * args.utilisation) / 86400,
            )


def table(rows: list[dict[str, Any]]) -> str:
    """Format the plan as a Markdown table, with the memory on each GPU in GiB."""
    kinds = list(rows[0]['memory'])
    heads = ['how', 'columns', *kinds, 'total, GiB', 'fewest GPUs', 'TFLOPs / image', 'days']
    cells = []
    for row in rows:
        gib = [value / 2**30 for value in row['memory'].values()]
        cells.append(
            [
                *(row['how'], 'save_memory' if row['save_memory'] else 'plain'),
                *(f'{value:.1f}' for value in (*gib, sum(gib))),
                *(row['fewest_gpus'] or 'none', f'{row["flops_per_image"] / 1e12:.1f}', f'{row["days"]:.1f}'),
            ]
        )
    return markdown_table(heads, cells)


def main() -> None:
    with errors_in_one_line():
        args, cfg = parse_args()
        rows = list(plan(cfg, args))
    print(
        f'{args.config}: {rows[0]["parameters"] / 1e6:.0f} M parameters, {rows[0]["iterations"]} iterations '
        f'on {args.gpus} GPUs, {cfg.train_dataloader.batch_size} image(s) on each; {args.tflops:g} TFLOPS at '
        f'{args.utilisation:.0%}; fewest GPUs that leave 10 % of {args.gpu_memory:g} GiB free'
    )
    print(table(rows))
    write_report(rows, args.out, 'plan_training')


if __name__ == '__main__':
    main()
