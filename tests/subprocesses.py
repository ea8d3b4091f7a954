"""Run Python programs in processes of their own, with one thread each."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch.distributed

REPO = Path(__file__).parents[1]
SEARCHED = os.pathsep.join(filter(None, [str(REPO), os.environ.get('PYTHONPATH')]))


def run(*args, expect=0, cwd=REPO, **env):
    """Run ``python *args``, check its exit status, and return its stdout and stderr together."""
    done = subprocess.run(
        [sys.executable, *map(str, args)],
        cwd=cwd,
        env={**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': SEARCHED, **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
    )
    assert done.returncode == expect, f'exit status {done.returncode}:\n{done.stdout[-6000:]}'
    return done.stdout


def run_in_processes(code, *args, expect=0):
    """Run code at once in two processes, with the rank before the other arguments; see :func:`run`."""

    def run_rank(rank):
        return run('-c', code, rank, *args, expect=expect, LOCAL_RANK=str(rank))

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(run_rank, range(2)))


def sample_options(data, layout, *options):
    """Return arguments of a tool: where a config finds the sample data in this layout, and more options."""
    roots = [f'{split}_dataloader.dataset.data_root={data / layout}' for split in ('train', 'val', 'test')]
    if layout == 'coco':
        ann_file = data / 'coco/annotations/instances_val2017.json'
        roots += [f'{split}_evaluator.ann_file={ann_file}' for split in ('val', 'test')]
    return '--cfg-options', *roots, *options


def leave_processes():
    """End this process, as one of several, without Python's shutdown.

    During the shutdown, gloo's threads may abort the process, also after destroy_process_group.
    """
    sys.stdout.flush()
    torch.distributed.barrier()
    os._exit(0)
