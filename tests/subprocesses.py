"""Run Python programs in processes of their own, with one thread each."""

import os
import subprocess
import sys
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


def leave_sharded_training():
    """End this process, as one of several, without Python's shutdown.

    During the shutdown, gloo's threads may free a tensor, which aborts the process. FSDP2 keeps them alive,
    also after destroy_process_group.
    """
    sys.stdout.flush()
    torch.distributed.barrier()
    os._exit(0)
