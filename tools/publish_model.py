"""Make of a run's checkpoint one to publish: its weights, without optimizer state, named by their hash.

Averaged weights (EMA) are taken where there are any. OUT model.pth becomes model-1a2b3c4d.pth, with the
first 8 digits of the file's SHA-256, as OpenMMLab's published files are named; model.safetensors likewise.

Example: python tools/publish_model.py work_dirs/run1/iter_160000.pth mask2former_revcol_b_ade20k.safetensors
"""

import argparse
from pathlib import Path

from revcol_mm.models.checkpoint import has_ema, model_weights, plain, read_checkpoint, save_checkpoint
from revcol_mm.preflight import errors_in_one_line


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('source', metavar='IN', help='checkpoint to publish')
    parser.add_argument(
        'out', metavar='OUT', type=Path, help='.pth or .safetensors file to write, named without the hash'
    )
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    with errors_in_one_line(RuntimeError):
        checkpoint = read_checkpoint(args.source, setting=None)
        ema = has_ema(checkpoint)
        published = {
            'meta': plain(checkpoint.get('meta')) or {},
            'state_dict': model_weights(checkpoint, ema),
        }
        out = save_checkpoint(published, args.out, name_hash=True)
    print(f'{out}: {"averaged" if ema else "the"} weights, {out.stat().st_size / 2**20:.1f} MiB')


if __name__ == '__main__':
    main()
