"""What a training needs before it is run: memory on each GPU, the number of GPUs, and days.

    python tools/analysis/plan_training.py configs/dino_revcol_h_objects365.py --gpus 64 --shape 1200 2000
    --mean-shape 1000 1500 --num-images 1742292

prints a table for DDP and FullyShardedRunner, plain and with save_memory. Weights, gradients and optimizer
state are counted, in float32. Activations are extrapolated from three training steps of models with narrow
columns on small images, measured on this CPU with deformable attention as its CUDA kernel has it, or on
--device; images have 7 objects. Not counted are the CUDA context, libraries' work spaces and fragmentation:
leave 10 % free. Days are FLOPs of all images over those that the GPUs do at the utilisation that is assumed,
and nothing else: communication and data loading are in no number but the utilisation, an assumption until it
is measured.
"""

import argparse
import json
from math import ceil
from pathlib import Path
from typing import Any, Iterator

from mmengine.config import Config

from revcol_mm.analysis.training_plan import (
    count_sizes,
    estimate_activations,
    training_flops,
    training_memory,
)
from revcol_mm.apis import pick_device
from revcol_mm.config.command_line import add_config_arguments, check_writable, read_config
from revcol_mm.config.options import merge_options
from revcol_mm.errors import errors_in_one_line

MOST_GPUS = 1024


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_config_arguments(parser)
    size = dict(nargs=2, type=int, metavar=('H', 'W'))
    parser.add_argument('--gpus', type=int, required=True, metavar='N')
    parser.add_argument('--shape', **size, required=True, help='largest training image, for memory')
    parser.add_argument('--mean-shape', **size, help='average training image, for time [--shape]')
    parser.add_argument('--num-images', type=int, help='in an epoch, where the config counts in epochs')
    parser.add_argument('--gpu-memory', type=float, default=80, metavar='GIB', help='of a GPU [80]')
    parser.add_argument(
        '--tflops', type=float, default=156, help="peak of a GPU, in 10^12 FLOPs a second [156, A100's TF32]"
    )
    parser.add_argument('--utilisation', type=float, default=0.3, help='part of the peak in use [0.3]')
    parser.add_argument('--device', default='cpu', help='to measure activations on [cpu]')
    parser.add_argument('--out', type=Path, help='folder for plan_training.json')
    args = parser.parse_args()
    sizes = (args.gpus, *args.shape, *(args.mean_shape or ()), args.num_images or 1)
    if min(sizes) < 1 or args.gpu_memory <= 0 or args.tflops <= 0 or not 0 < args.utilisation <= 1:
        parser.error('sizes and counts start at 1, and the utilisation is in (0, 1]')
    return args


def count_images(cfg: Config, args: argparse.Namespace) -> int:
    """Images that the whole training sees."""
    if 'max_iters' in cfg.train_cfg:
        return cfg.train_cfg.max_iters * cfg.train_dataloader.batch_size * args.gpus
    if args.num_images is None:
        raise ValueError(f'{cfg.filename} trains for {cfg.train_cfg.max_epochs} epochs: give --num-images')
    return cfg.train_cfg.max_epochs * args.num_images


def plan(cfg: Config, args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Rows of the table."""
    sizes, num_images, device = count_sizes(cfg), count_images(cfg, args), pick_device(args.device)
    batch_size, optimizer = cfg.train_dataloader.batch_size, cfg.optim_wrapper.optimizer.type
    for save_memory in (False, True):
        activations = estimate_activations(cfg, args.shape, save_memory, sizes, device=device)
        flops = training_flops(cfg, args.mean_shape or args.shape, save_memory)
        for sharded in (False, True):

            def needs(num_gpus: int, sharded: bool = sharded, activations: int = activations) -> Any:
                return training_memory(sizes, activations, batch_size, num_gpus, sharded, optimizer)

            numbers = [2**power for power in range(MOST_GPUS.bit_length())]
            room = args.gpu_memory * 0.9 * 2**30
            yield dict(
                how='FullyShardedRunner' if sharded else 'DDP',
                save_memory=save_memory,
                parameters=sizes.total,
                memory=needs(args.gpus)._asdict(),
                fewest_gpus=next((n for n in numbers if sum(needs(n)) <= room), None),
                flops_per_image=flops,
                iterations=ceil(num_images / batch_size / args.gpus),
                days=num_images * flops / (args.gpus * args.tflops * 1e12 * args.utilisation) / 86400,
            )


def table(rows: list[dict[str, Any]]) -> str:
    """The plan as Markdown; memory in GiB on each GPU."""
    kinds = list(rows[0]['memory'])
    heads = ['how', 'columns', *kinds, 'total, GiB', 'fewest GPUs', 'TFLOPs / image', 'days']
    lines = ['| ' + ' | '.join(heads) + ' |', '|---' * len(heads) + '|']
    for row in rows:
        gib = [value / 2**30 for value in row['memory'].values()]
        cells = [row['how'], 'save_memory' if row['save_memory'] else 'plain']
        cells += [f'{value:.1f}' for value in (*gib, sum(gib))]
        cells += [str(row['fewest_gpus'] or 'none'), f'{row["flops_per_image"] / 1e12:.1f}']
        lines.append('| ' + ' | '.join([*cells, f'{row["days"]:.1f}']) + ' |')
    return '\n'.join(lines)


def main() -> None:
    args = parse_args()
    with errors_in_one_line():
        cfg = read_config(args.config)
        merge_options(cfg, args.cfg_options)
        if args.out:
            check_writable(args.out)
        rows = list(plan(cfg, args))
    print(
        f'{args.config}: {rows[0]["parameters"] / 1e6:.0f} M parameters, {rows[0]["iterations"]} iterations '
        f'on {args.gpus} GPUs, {cfg.train_dataloader.batch_size} image(s) on each; {args.tflops:g} TFLOPS at '
        f'{args.utilisation:.0%}; fewest GPUs that leave 10 % of {args.gpu_memory:g} GiB free'
    )
    print(table(rows))
    if args.out:
        (args.out / 'plan_training.json').write_text(json.dumps(rows, indent=1) + '\n')


if __name__ == '__main__':
    main()
