"""Slow proofs that nothing is lost: `python -m pytest -m reliability`, outside of `make test`."""

import os
import random
import re
import signal
import subprocess
import sys
import time

import pytest
import torch

from revcol_mm.models.checkpoint import model_weights, read_checkpoint

from .subprocesses import REPO

pytestmark = pytest.mark.reliability
NUM_KILLS = 10
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


@pytest.mark.parametrize(
    'config, layout',
    [('mask2former_revcol_nano_sample', 'ade20k'), ('dino_revcol_nano_sample', 'coco')],
)
def test_killed_at_random_moments_a_run_ends_as_if_it_had_not_been(config, layout, sample_data, tmp_path):
    """Real models, augmentation in workers: the final checkpoints hold the same bits."""
    subprocess.run(command(config, layout, sample_data, tmp_path / 'a'), check=True, cwd=REPO, env=ENV)
    broken = command(config, layout, sample_data, tmp_path / 'b', '--resume')
    last = tmp_path / 'b/iter_30.pth'
    for kill in range(NUM_KILLS):
        process = subprocess.Popen(broken, cwd=REPO, env=ENV, start_new_session=True)
        begun = len(list((tmp_path / 'b').glob('*/vis_data/scalars.json')))
        while len(list((tmp_path / 'b').glob('*/vis_data/scalars.json'))) == begun and process.poll() is None:
            time.sleep(0.1)  # until an iteration is over
        time.sleep(random.uniform(0, 30 / NUM_KILLS))
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if last.exists():
            last.unlink()  # it has got to the end: again from one before
        print(f'kill {kill}: {sorted(path.name for path in (tmp_path / "b").glob("iter*.pth"))}')
    subprocess.run(broken, check=True, cwd=REPO, env=ENV)
    expected, actual = (model_weights(read_checkpoint(tmp_path / run / 'iter_30.pth')) for run in ('a', 'b'))
    for name, weight in expected.items():
        assert torch.equal(actual[name], weight), name
    logs = ''.join(path.read_text() for path in (tmp_path / 'b').glob('*/*.log'))
    assert len(re.findall('resumed epoch', logs)) >= NUM_KILLS / 2
