"""Prepare a run of tools/train.py or tools/test.py: command line, config checks and processes."""

import argparse
import gc
import os
import shlex
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed
from mmengine.config import Config, ConfigDict
from mmengine.logging import MMLogger
from mmengine.utils import get_git_hash

from revcol_mm.config.command_line import add_config_arguments, check_writable, read_config
from revcol_mm.config.options import merge_options, warn_about_misspelt_keys
from revcol_mm.preflight import check_files


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command-line arguments of both training and testing."""
    add_config_arguments(parser)
    parser.add_argument('--work-dir', help='folder for logs and checkpoints [work_dirs/CONFIG]')
    parser.add_argument(
        '--launcher',
        choices=['none', 'pytorch', 'slurm', 'mpi'],
        default='none',
        help='how the processes of a distributed run were started [none]',
    )


def load_config(args: argparse.Namespace, loaders: tuple[str, ...]) -> Config:
    """Read the config, apply the command line's options, and check what would otherwise fail late in a run.

    Adds PreflightHook and LoadFromHook if the config lacks them. The command and the git commit of the
    current folder are added to ``env_cfg``, which MMEngine logs.

    Args:
        args: Parsed arguments of :func:`add_common_arguments`.
        loaders: Config keys of the data loaders that the run uses. Without 'train_dataloader', a checkpoint
            must contain all of the model's weights.

    Raises:
        FileNotFoundError: If the config, data or a pretrained checkpoint is missing.
        ValueError: If ``default_scope`` or a key of ``--cfg-options`` is wrong, or the work dir is read-only.
        SystemExit: If a package that the config's task needs is not installed.
    """
    cfg = read_config(args.config)
    warn_about_misspelt_keys(cfg)
    merge_options(cfg, args.cfg_options)
    check_files(cfg, loaders)
    hooks = cfg.setdefault('default_hooks', ConfigDict())
    hooks.setdefault('preflight', dict(type='PreflightHook'))
    load_from = hooks.setdefault('load_from', dict(type='LoadFromHook'))
    if load_from is not None and 'train_dataloader' not in loaders:
        load_from['strict'] = True
    # MMEngine logs all of env_cfg and ignores unknown keys.
    cfg.setdefault('env_cfg', ConfigDict()).update(
        command=shlex.join(sys.argv), git_commit=get_git_hash(fallback='none')
    )
    cfg.launcher = args.launcher
    cfg.work_dir = args.work_dir or cfg.get('work_dir') or f'work_dirs/{Path(args.config).stem}'
    check_writable(Path(cfg.work_dir))
    return cfg


def adapt_precision_to_device(cfg: Config) -> None:
    """Without a GPU, turn off mixed precision in training, and log a warning."""
    optim_wrapper = cfg.get('optim_wrapper', {})
    if not torch.cuda.is_available() and optim_wrapper.get('type') == 'AmpOptimWrapper':
        MMLogger.get_current_instance().warning('no GPU: training without mixed precision')
        optim_wrapper.type = 'OptimWrapper'
        for key in ('dtype', 'loss_scale', 'use_fsdp'):
            optim_wrapper.pop(key, None)


def adapt_to_device(cfg: Config) -> None:
    """Without a GPU, start distributed runs with gloo instead of NCCL.

    Raises:
        ValueError: If the launcher is MPI, with which MMEngine would select a GPU.
    """
    if torch.cuda.is_available():
        return
    if cfg.launcher == 'mpi':
        raise ValueError('--launcher mpi needs GPUs: use pytorch or slurm')
    if cfg.launcher == 'slurm':
        _set_torch_variables_from_slurm()
    if cfg.launcher in ('pytorch', 'slurm'):
        timeout = cfg.get('env_cfg', {}).get('dist_cfg', {}).get('timeout', 1800)
        # Started here because MMEngine would first select a GPU.
        torch.distributed.init_process_group('gloo', timeout=timedelta(seconds=timeout))
        if cfg.get('runner_type') != 'FullyShardedRunner':
            unused = cfg.get('find_unused_parameters', False)
            default = dict(broadcast_buffers=False, find_unused_parameters=unused)  # MMEngine's
            cfg.model_wrapper_cfg = {**(cfg.get('model_wrapper_cfg') or default), 'device_ids': None}


def leave_processes() -> None:
    """Destroy the process group of a distributed run, as NCCL requires before exit.

    The caller must have let go of the model. A sharded one refers to the group, which keeps gloo's threads
    alive until Python's shutdown, where they may abort the process.
    """
    if torch.distributed.is_initialized():
        gc.collect()  # the model is in cycles
        torch.distributed.destroy_process_group()


def _set_torch_variables_from_slurm() -> None:
    """Set torch.distributed's environment variables from Slurm's, as MMEngine does on GPUs."""
    show_nodes = ['scontrol', 'show', 'hostnames', os.environ['SLURM_NODELIST']]
    nodes = subprocess.check_output(show_nodes, text=True)
    os.environ.setdefault('MASTER_ADDR', nodes.split()[0])
    os.environ.setdefault('MASTER_PORT', '29500')
    for name, slurm in (('RANK', 'PROCID'), ('LOCAL_RANK', 'LOCALID'), ('WORLD_SIZE', 'NTASKS')):
        os.environ[name] = os.environ[f'SLURM_{slurm}']
