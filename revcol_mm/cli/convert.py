"""Convert a checkpoint for good, from and to the layout in which RevCol's authors publish theirs.

Both OpenMMLab's programs and those of RevCol's authors load what they are given here, and nothing that is
pickled in IN runs. Training and testing with revcol_mm take published checkpoints as they are.

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
    parser.add_argument('--drop-heads', action='store_true', help="keep the backbone's weights alone")
    parser.add_argument('--ema', action='store_true', help='take the weights averaged in training')
    parser.add_argument(
        '--pad-kernel',
        type=int,
        metavar='SIZE',
        help="zero-pad the backbone's depthwise kernels to SIZE (published for RevCol-H in segmentation: 7)",
    )
    return parser.parse_args()


def convert(
    checkpoint: dict[str, Any],
    to: str = 'revcol_mm',
    drop_heads: bool = False,
    ema: bool = False,
    pad_size: int | None = None,
) -> dict[str, Any]:
    """Convert a checkpoint of any layout; the arguments are those of the command line.

    Raises:
        CheckpointError: If there are no weights, or no averaged ones where asked for.
        ValueError: If none are of a backbone, or the kernels cannot be padded to that size.
    """
    weights = model_weights(checkpoint, ema)
    backbone = [name for name in weights if name.startswith(BACKBONE)]
    if not backbone:
        raise ValueError(f'no weights of a backbone in the checkpoint; it has {list(weights)[:5]}')
    if drop_heads:
        for name in weights.keys() - set(backbone):
            del weights[name]
    if pad_size is not None:
        for name in backbone:
            if name.endswith('dwconv.weight'):
                weights[name] = pad_kernel(weights[name], pad_size)
    meta = plain(checkpoint.get('meta')) or {}
    return published_layout(weights, meta) if to == 'published' else {'meta': meta, 'state_dict': weights}


def main() -> None:
    args = parse_args()
    with errors_in_one_line(RuntimeError):
        if args.out.exists() and Path(args.source).exists() and args.out.samefile(args.source):
            raise ValueError(f'OUT is IN, {args.out}; choose another name')
        checkpoint = read_checkpoint(args.source, setting=None)
        converted = convert(checkpoint, args.to, args.drop_heads, args.ema, args.pad_kernel)
        out = save_checkpoint(converted, args.out)
    weights = model_weights(converted)
    print(f'{out}: {len(weights)} weights, {sum(w.numel() for w in weights.values()) / 1e6:.3f} M numbers')


if __name__ == '__main__':
    main()
