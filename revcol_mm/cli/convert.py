"""Convert a checkpoint from and to the layout in which RevCol's authors publish theirs.

Plain OpenMMLab programs can load the layout 'revcol_mm', and the authors' programs can load 'published'.
Training and testing with revcol_mm read both without conversion. Reading IN runs no code that is pickled in
it.

Example: revcol convert revcol_base_22k.pth revcol_base.pth --drop-heads
"""

import argparse
from pathlib import Path
from typing import Any

from revcol_mm.checkpoints.fitting import pad_kernel
from revcol_mm.checkpoints.layouts import BACKBONE, model_weights, published_layout
from revcol_mm.checkpoints.reading import plain, read_checkpoint
from revcol_mm.checkpoints.writing import save_checkpoint
from revcol_mm.errors import errors_in_one_line


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('source', metavar='IN', help='checkpoint to read, file or URL; .pth or .safetensors')
    parser.add_argument('out', metavar='OUT', type=Path, help='checkpoint to write, .pth or .safetensors')
    parser.add_argument(
        '--to', choices=['revcol_mm', 'published'], default='revcol_mm', help='layout of OUT [revcol_mm]'
    )
    parser.add_argument('--drop-heads', action='store_true', help="keep only the backbone's weights")
    parser.add_argument('--ema', action='store_true', help='take the averaged weights (EMA)')
    parser.add_argument(
        '--pad-kernel',
        type=int,
        metavar='SIZE',
        help="zero-pad the backbone's depthwise kernels to SIZE (published for RevCol-H in segmentation: 7)",
    )
    return parser.parse_args()


def convert(checkpoint: dict[str, Any], args: argparse.Namespace) -> dict[str, Any]:
    """Convert a checkpoint of either layout, as :func:`read_checkpoint` returns it.

    Raises:
        CheckpointError: If there are no weights, or no averaged ones although these are asked for.
        ValueError: If no weights are of a backbone, or there are no kernels that can be padded to this size.
    """
    weights = model_weights(checkpoint, args.ema)
    backbone = [name for name in weights if name.startswith(BACKBONE)]
    if not backbone:
        raise ValueError(f'the checkpoint has no weights of a backbone; its first are {list(weights)[:5]}')
    if args.drop_heads:
        for name in weights.keys() - set(backbone):
            del weights[name]
    if args.pad_kernel is not None:
        kernels = [name for name in backbone if name.endswith('dwconv.weight')]
        if not kernels:
            raise ValueError('the backbone has no depthwise kernels (dwconv.weight) that could be padded')
        for name in kernels:
            weights[name] = pad_kernel(weights[name], args.pad_kernel)
    meta = plain(checkpoint.get('meta')) or {}
    return (
        published_layout(weights, meta) if args.to == 'published' else {'meta': meta, 'state_dict': weights}
    )


def main() -> None:
    args = parse_args()
    with errors_in_one_line(RuntimeError):
        if args.out.exists() and Path(args.source).exists() and args.out.samefile(args.source):
            raise ValueError(f'OUT and IN are the same file, {args.out}: choose another name')
        checkpoint = read_checkpoint(args.source, setting=None)
        converted = convert(checkpoint, args)
        out = save_checkpoint(converted, args.out)
    weights = model_weights(converted)
    print(f'{out}: {len(weights)} weights, {sum(w.numel() for w in weights.values()) / 1e6:.3f} M values')


if __name__ == '__main__':
    main()
