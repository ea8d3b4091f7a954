"""Running Python programs in their own process, one thread each: two of torch's on 2 cores fight."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

REPO = Path(__file__).parents[1]
needs_sharding = pytest.mark.skipif(
    torch.__version__.startswith('2.6.'), reason='fully_shard of torch 2.6 has no CPU'
)
SHARDED = pytest.param('FullyShardedRunner', marks=needs_sharding)


def run(*args, expect=0, cwd=REPO, **env):
    """Run ``python *args`` and return what it printed, stdout and stderr together."""
    done = subprocess.run(
        [sys.executable, *map(str, args)],
        cwd=cwd,
        env={**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': str(REPO), **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
    )
    assert done.returncode == expect, f'exit status {done.returncode}:\n{done.stdout[-6000:]}'
    return done.stdout
