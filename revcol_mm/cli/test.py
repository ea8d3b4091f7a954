"""Test a checkpoint: print metrics such as mIoU or COCO AP, and optionally write predictions.

Example: revcol test configs/mask2former_revcol_b_ade20k.py work_dirs/run1/iter_160000.pth --tta
"""

import argparse
from pathlib import Path

from revcol_mm.check_env import CORE, require_parts

require_parts('testing', CORE)

from mmengine.config import Config, ConfigDict
from mmengine.dist import is_main_process

from revcol_mm.config.command_line import check_writable
from revcol_mm.errors import errors_in_one_line
from revcol_mm.training.launch import adapt_to_device, add_common_arguments, leave_processes, load_config
from revcol_mm.training.runner import ResumableRunner
from revcol_mm.training.seeded_dataset import BrokenSampleError


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_common_arguments(parser)
    parser.add_argument('checkpoint', help='checkpoint: file, URL, or folder of a sharded one')
    parser.add_argument(
        '--out',
        metavar='DIR',
        help='folder for predictions: label PNGs (segmentation), COCO result files (detection) '
        'or a pickle (classification)',
    )
    parser.add_argument('--show-dir', metavar='DIR', help='folder for pictures of predictions')
    parser.add_argument('--tta', action='store_true', help='test-time augmentation: several scales and flips')
    return parser.parse_args()


def use_tta(cfg: Config) -> None:
    """Make the config use its test-time augmentation."""
    if not cfg.get('tta_model') or not cfg.get('tta_pipeline'):
        raise ValueError(f'--tta needs tta_model and tta_pipeline, which {cfg.filename} does not have')
    cfg.test_dataloader.dataset.pipeline = cfg.tta_pipeline
    if 'data_preprocessor' in cfg.model:  # MMEngine prefers the one at the top level
        cfg.data_preprocessor = cfg.model.data_preprocessor
    cfg.model = ConfigDict(**cfg.tta_model, module=cfg.model)


def write_predictions(cfg: Config, out: str) -> None:
    """Make the config's evaluators write predictions.

    Raises:
        ValueError: If none of them can.
    """
    evaluators = cfg.test_evaluator if isinstance(cfg.test_evaluator, list) else [cfg.test_evaluator]
    options = dict(
        IoUMetric=dict(output_dir=out),
        CocoMetric=dict(outfile_prefix=f'{out}/predictions'),
        CocoPanopticMetric=dict(outfile_prefix=f'{out}/predictions'),
    )
    types = [str(evaluator.type).split('.')[-1] for evaluator in evaluators]
    if cfg.default_scope == 'mmpretrain':
        evaluators.append(ConfigDict(type='DumpResults', out_file_path=f'{out}/predictions.pkl'))
    elif not set(types) & set(options):
        raise ValueError(
            f'--out needs one of the evaluators {", ".join(options)}; {cfg.filename} has {", ".join(types)}'
        )
    for evaluator, name in zip(evaluators, types):
        evaluator.update(options.get(name, {}))
    cfg.test_evaluator = evaluators


def draw_predictions(cfg: Config, show_dir: str) -> None:
    """Make the config's visualization hook draw every image."""
    if 'visualization' not in cfg.default_hooks:
        raise ValueError(f'--show-dir needs default_hooks.visualization, which {cfg.filename} does not have')
    cfg.visualizer.save_dir = show_dir
    # The visualizer appends a subfolder to save_dir, which '..' undoes.
    cfg.visualizer.vis_backends = [dict(type='LocalVisBackend', img_save_dir='..')]
    cfg.default_hooks.visualization.interval = 1
    cfg.default_hooks.visualization['enable' if cfg.default_scope == 'mmpretrain' else 'draw'] = True


def print_metrics(metrics: dict[str, float], args: argparse.Namespace) -> None:
    """Print the metrics, and the folders of predictions and pictures."""
    width = max(map(len, metrics), default=0)
    print('', *(f'{name:{width}} {value:.4g}' for name, value in metrics.items()), sep='\n')
    for what, folder in (('predictions', args.out), ('pictures', args.show_dir)):
        if folder:
            print(f'{what} in {folder}')


def main() -> None:
    args = parse_args()
    with errors_in_one_line(BrokenSampleError):
        if '://' not in args.checkpoint and not Path(args.checkpoint).exists():
            raise FileNotFoundError(f'no checkpoint {args.checkpoint}')
        cfg = load_config(args, loaders=('test_dataloader',))
        if not args.work_dir:  # the work dir of the training keeps its own config and logs
            cfg.work_dir = str(Path(cfg.work_dir, 'test'))
            check_writable(Path(cfg.work_dir))
        if args.tta:
            use_tta(cfg)
        if args.out:
            check_writable(Path(args.out))  # or processes of MMSegmentation race to make it
            write_predictions(cfg, args.out)
        if args.show_dir:
            draw_predictions(cfg, args.show_dir)
        cfg.load_from = args.checkpoint
        adapt_to_device(cfg)
        metrics = ResumableRunner.from_cfg(cfg).test()
    if is_main_process():
        print_metrics(metrics, args)
    leave_processes()


if __name__ == '__main__':
    main()
