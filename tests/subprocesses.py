"""Run Python programs in processes of their own, with one thread each."""

import os
import subprocess
import sys
from pathlib import Path

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
