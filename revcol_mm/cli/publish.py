"""Prepare a checkpoint for publishing: keep its weights, drop the optimizer state, add a hash to its name.

If the checkpoint has averaged weights (EMA), these are taken. OUT model.pth becomes model-1a2b3c4d.pth,
with the first 8 digits of the file's SHA-256, as OpenMMLab names its files. The same holds for
.safetensors.

With --hub, OUT is a folder for the Hugging Face Hub. It gets the weights as model.safetensors, the config,
and a model card with --data, --metrics and --license. Load it by revcol_mm.load(OUT) or, after uploading
it, by revcol_mm.load('ORG/NAME').

Example: revcol publish work_dirs/run1/iter_160000.pth mask2former_revcol_b_ade20k.safetensors
"""

import argparse
from pathlib import Path
from typing import Any

from revcol_mm.checkpoints.layouts import has_ema, model_weights
from revcol_mm.checkpoints.reading import plain, read_checkpoint
from revcol_mm.checkpoints.writing import save_checkpoint
from revcol_mm.errors import errors_in_one_line


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('source', metavar='IN', help='checkpoint to publish')
    parser.add_argument(
        'out', metavar='OUT', type=Path, help='.pth or .safetensors file to write, named without hash'
    )
    hub = parser.add_argument_group('a folder for the Hugging Face Hub')
    hub.add_argument('--hub', metavar='CONFIG', help='config of the model; makes OUT a folder')
    hub.add_argument('--license', metavar='ID', help="the Hub's name of the licence, such as apache-2.0")
    hub.add_argument('--data', metavar='NAME', help='data set that the model was trained and tested on')
    hub.add_argument('--metrics', type=Path, metavar='FILE', help='JSON file that `revcol test` wrote')
    return parser.parse_args()


def check_options(args: argparse.Namespace) -> None:
    """Raise a ValueError if options do not fit together."""
    if args.hub and not args.license:
        raise ValueError('--hub needs --license, which says how others may use the weights')
    if not args.hub and (args.license or args.data or args.metrics):
        raise ValueError('--license, --data and --metrics need --hub')


def publish_to_hub(checkpoint: dict[str, Any], args: argparse.Namespace) -> None:
    """Write the folder, and print how to use it."""
    from revcol_mm.apis.hub import read_metrics, write_folder
    from revcol_mm.config.command_line import read_config

    metrics = read_metrics(args.metrics) if args.metrics else None
    write_folder(checkpoint, read_config(args.hub), args.out, args.license, args.data, metrics)
    print(f'wrote {", ".join(sorted(path.name for path in args.out.iterdir()))} to {args.out}')
    print(f"to load it: revcol_mm.load('{args.out}'); to upload it: hf upload ORG/{args.out.name} {args.out}")


def main() -> None:
    args = parse_args()
    with errors_in_one_line(RuntimeError):
        check_options(args)
        checkpoint = read_checkpoint(args.source, setting=None)
        ema = has_ema(checkpoint)
        published = {
            'meta': plain(checkpoint.get('meta')) or {},
            'state_dict': model_weights(checkpoint, ema),
        }
        if args.hub:
            publish_to_hub(published, args)
            return
        out = save_checkpoint(published, args.out, name_hash=True)
    print(f'{out}: {"averaged" if ema else "the"} weights, {out.stat().st_size / 2**20:.1f} MiB')


if __name__ == '__main__':
    main()
