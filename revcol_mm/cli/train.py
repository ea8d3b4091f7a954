"""Train the model of a config for segmentation, detection or classification.

Example: revcol train configs/mask2former_revcol_b_ade20k.py --work-dir work_dirs/run1
"""

import argparse
from pathlib import Path

from revcol_mm.check_env import CORE, require_parts

require_parts('training', CORE)

from mmengine.registry import RUNNERS

from revcol_mm.errors import errors_in_one_line
from revcol_mm.training.launch import (
    adapt_precision_to_device,
    adapt_to_device,
    add_common_arguments,
    leave_processes,
    load_config,
)
from revcol_mm.training.nonfinite import NonFiniteError
from revcol_mm.training.seeded_dataset import BrokenSampleError


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_common_arguments(parser)
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='CKPT',
        help='resume from CKPT, or without CKPT from the newest checkpoint in the work dir',
    )
    parser.add_argument('--amp', action='store_true', help='train in mixed precision')
    parser.add_argument('--seed', type=int, help='seed of all random number generators [random]')
    parser.add_argument('--deterministic', action='store_true', help='use deterministic algorithms; slower')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    with errors_in_one_line(NonFiniteError, BrokenSampleError):
        if args.resume not in (None, 'auto') and not Path(args.resume).exists():
            raise FileNotFoundError(f'no checkpoint {args.resume} to resume from')
        if args.seed is not None and not 0 <= args.seed < 2**32:
            raise ValueError(f'--seed must be from 0 to {2**32 - 1}, got {args.seed}')
        options = args.cfg_options
        if args.resume == 'auto':
            options['resume'] = 'auto'
        elif args.resume:
            options.update(resume=True, load_from=args.resume)
        if args.seed is not None:
            options['randomness.seed'] = args.seed
        if args.deterministic:
            options['randomness.deterministic'] = True
        cfg = load_config(args, loaders=('train_dataloader', 'val_dataloader'))
        runner_type = RUNNERS.get(cfg.get('runner_type', 'ResumableRunner'))
        if runner_type is None:
            raise ValueError(
                f'runner_type must be ResumableRunner or FullyShardedRunner, got {cfg.runner_type!r}'
            )
        if args.amp:
            cfg.optim_wrapper.type = 'AmpOptimWrapper'
        adapt_precision_to_device(cfg)
        adapt_to_device(cfg)
        runner_type.from_cfg(cfg).train()
        leave_processes()


if __name__ == '__main__':
    main()
