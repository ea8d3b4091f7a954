"""Whole trainings that are killed or hang: run by `python -m pytest -m reliability`."""

import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from revcol_mm.checkpoints.layouts import model_weights
from revcol_mm.checkpoints.reading import read_checkpoint

from .checkpoints import assert_same_weights
from .subprocesses import REPO

psutil = pytest.importorskip('psutil')
pytestmark = pytest.mark.reliability
NUM_KILLS = 20
LIMIT = 600  # seconds for what takes at most a minute on an idle machine
ENV = {**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': str(REPO)}


def command(config, layout, data, work_dir, *options):
    ann_file = data / 'coco/annotations/instances_val2017.json'
    loader = ('num_workers=2', 'persistent_workers=True', f'dataset.data_root={data / layout}')
    return (
        *(sys.executable, 'tools/train.py', f'configs/{config}.py', '--seed', '0', '--deterministic'),
        *('--work-dir', str(work_dir), *options, '--cfg-options'),
        *(f'{split}_dataloader.{option}' for split in ('train', 'val') for option in loader),
        *('train_dataloader.batch_size=2', 'model.backbone.save_memory=True', 'train_cfg.max_iters=30'),
        *('train_cfg.val_interval=1000', 'default_hooks.checkpoint.interval=2'),
        *('default_hooks.checkpoint.save_last=True', 'default_hooks.logger.interval=1'),
        *([f'val_evaluator.ann_file={ann_file}'] if layout == 'coco' else []),
    )


def assert_same_checkpoints(checkpoint, other):
    assert_same_weights(*(model_weights(read_checkpoint(path)) for path in (checkpoint, other)))


def wait_until(happened, process):
    """Wait until something has happened or the process has ended; end it after LIMIT."""
    deadline = time.monotonic() + LIMIT
    while not happened() and process.poll() is None:
        if time.monotonic() > deadline:
            os.killpg(process.pid, signal.SIGKILL)
            raise AssertionError(f'nothing happened within {LIMIT} s')
        time.sleep(0.05)


@pytest.mark.parametrize(
    'config, layout',
    [('mask2former_revcol_nano_sample', 'ade20k'), ('dino_revcol_nano_sample', 'coco')],
)
def test_run_killed_at_random_times_equals_an_uninterrupted_one(config, layout, sample_data, tmp_path):
    """Real models with augmentation in workers: the final weights are bitwise equal.

    A run is killed when it has logged a random number of iterations, 3 for the first run. Its second
    iteration was saved by then, so that all others resume.
    """
    subprocess.run(command(config, layout, sample_data, tmp_path / 'whole'), check=True, cwd=REPO, env=ENV)
    work_dir = tmp_path / 'killed'
    resuming = command(config, layout, sample_data, work_dir, '--resume')
    last = work_dir / 'iter_30.pth'
    draw, num_killed = random.Random(0), 0

    def num_logged():
        return sum(len(path.read_text().splitlines()) for path in work_dir.glob('*/vis_data/scalars.json'))

    for kill in range(NUM_KILLS):
        enough = num_logged() + (draw.randint(1, 3) if kill else 3)
        process = subprocess.Popen(resuming, cwd=REPO, env=ENV, start_new_session=True)
        wait_until(lambda enough=enough: num_logged() >= enough, process)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        num_killed += process.wait() == -signal.SIGKILL
        assert process.returncode in (0, -signal.SIGKILL)
        if last.exists():
            last.unlink()  # the run was completed: let it resume from the checkpoint before
        print(f'kill {kill}: {sorted(path.name for path in work_dir.glob("iter*.pth"))}')
    subprocess.run(resuming, check=True, cwd=REPO, env=ENV)
    assert num_killed
    assert_same_checkpoints(last, tmp_path / 'whole/iter_30.pth')
    logs = ''.join(path.read_text() for path in work_dir.glob('*/*.log'))
    assert len(re.findall('resumed epoch', logs)) == NUM_KILLS  # all but the first, and the one to the end


def start_two_processes(data, work_dir, *options):
    """Start tools/dist_train.sh; return the process and the file of its output."""
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    arguments = command('mask2former_revcol_nano_sample', 'ade20k', data, work_dir)[2:]
    config, *rest = arguments
    log = work_dir.with_suffix('.log')
    path = f'{Path(sys.executable).parent}:{os.environ["PATH"]}'
    with log.open('w') as output:
        process = subprocess.Popen(
            ['tools/dist_train.sh', config, '2', *rest, *options],
            cwd=REPO,
            env={**ENV, 'PATH': path, 'PORT': str(port)},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    return process, log


SRUN = """#!/usr/bin/env bash
# Like Slurm's srun on one machine: start the command --ntasks times, each with its rank.
for word; do case $word in --ntasks=*) ntasks=${word#*=} ;; esac; done
while [ "$1" != python ]; do shift; done
for (( i = 0; i < ntasks; i++ )); do
    SLURM_PROCID=$i SLURM_LOCALID=$i SLURM_NTASKS=$ntasks SLURM_NODELIST=localhost "$@" &
    processes+=($!)
done
for process in "${processes[@]}"; do wait "$process"; done
"""


def test_slurm_and_torchrun_give_the_same_weights(sample_data, tmp_path):
    """tools/slurm_train.sh runs with an srun and scontrol that imitate those of Slurm on one machine."""
    options = ('train_cfg.max_iters=4', 'default_hooks.checkpoint.interval=4')
    process, log = start_two_processes(sample_data, tmp_path / 'torchrun', *options)
    assert process.wait(timeout=LIMIT) == 0, log.read_text()[-4000:]
    commands = tmp_path / 'bin'
    commands.mkdir()
    for name, script in (('srun', SRUN), ('scontrol', '#!/bin/sh\necho localhost\n')):
        (commands / name).write_text(script)
        (commands / name).chmod(0o755)
    config, *rest = command('mask2former_revcol_nano_sample', 'ade20k', sample_data, tmp_path / 'slurm')[2:]
    subprocess.run(
        ['tools/slurm_train.sh', 'partition', 'job', config, *rest, *options],
        check=True,
        cwd=REPO,
        env={**ENV, 'GPUS': '2', 'PATH': f'{commands}:{Path(sys.executable).parent}:{os.environ["PATH"]}'},
    )
    logs = ''.join(path.read_text() for path in (tmp_path / 'slurm').glob('*/*.log'))
    assert 'Distributed launcher: slurm' in logs and 'GPU number: 2' in logs
    assert_same_checkpoints(tmp_path / 'slurm/iter_4.pth', tmp_path / 'torchrun/iter_4.pth')


def signal_second_process(process, log, number):
    """Send a signal to the process of local rank 1 after 7 training iterations."""
    wait_until(lambda: re.search(r'Iter\(train\) \[ *7/', log.read_text()), process)
    assert process.poll() is None, log.read_text()[-4000:]
    ranks = {
        p.pid: p.environ().get('LOCAL_RANK') for p in psutil.Process(process.pid).children(recursive=True)
    }
    (second,) = (p for p in map(psutil.Process, ranks) if ranks[p.pid] == '1' and not ranks.get(p.ppid()))
    second.send_signal(number)


RESTARTED = 'train_cfg.max_iters=14'


@pytest.mark.parametrize('runner_type', ['ResumableRunner', 'FullyShardedRunner'])
def test_killed_process_ends_the_job_which_can_be_resumed(runner_type, sample_data, tmp_path):
    """torchrun ends the other processes, with SIGKILL after 30 seconds if they wait for the killed one."""
    sharded = f'runner_type={runner_type}'
    endless = ('train_cfg.max_iters=10000', sharded)
    process, log = start_two_processes(sample_data, tmp_path / 'run', *endless)
    signal_second_process(process, log, signal.SIGKILL)
    assert process.wait(timeout=LIMIT) == 1
    printed = log.read_text()
    assert 'Signal 9 (SIGKILL)' in printed and 'local_rank: 1' in printed
    process, log = start_two_processes(sample_data, tmp_path / 'run', RESTARTED, sharded, 'resume=True')
    assert process.wait(timeout=LIMIT) == 0, log.read_text()[-4000:]
    assert re.search(r'resumed epoch: 0, iter: ([68]|10|12)\b', log.read_text())
    process, log = start_two_processes(sample_data, tmp_path / 'unbroken', RESTARTED, sharded)
    assert process.wait(timeout=LIMIT) == 0, log.read_text()[-4000:]
    assert_same_checkpoints(tmp_path / 'run/iter_14.pth', tmp_path / 'unbroken/iter_14.pth')


def test_hanging_process_ends_the_job_after_the_timeout(sample_data, tmp_path):
    """After ``env_cfg.dist_cfg.timeout``, here 10 s, and the 30 s that torchrun gives the hanging process."""
    options = ('train_cfg.max_iters=10000', 'env_cfg.dist_cfg.timeout=10')
    process, log = start_two_processes(sample_data, tmp_path / 'run', *options)
    signal_second_process(process, log, signal.SIGSTOP)
    assert process.wait(timeout=LIMIT) == 1
    assert re.search(r'Timed out waiting 10000ms', log.read_text())
