"""Runs in processes of their own that are killed or signalled and resumed equal uninterrupted ones."""

import os
import random
import re
import signal
import subprocess
import sys
import time

import pytest
import torch

from revcol_mm.checkpoints.run_files import newest_complete_checkpoint
from revcol_mm.training.interruption import INTERRUPTED

from .checkpoints import assert_same_weights
from .subprocesses import SEARCHED

# A run with every kind of state: augmentation in workers, random numbers in the model, averaged weights,
# schedule, loss scale.
TRAINING = """
import random, sys, time
from functools import partial
import mmengine.optim.optimizer.amp_optimizer_wrapper as amp
import numpy as np
import torch
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, MODELS
from torch.utils.data import Dataset
from revcol_mm import RevCol
from revcol_mm.training.runner import ResumableRunner

if not torch.cuda.is_available():  # MMEngine supports a loss scale on GPUs only
    amp.is_cuda_available = lambda: True
    amp.GradScaler = partial(torch.amp.GradScaler, 'cpu')

@DATASETS.register_module()
class Noise(Dataset):
    metainfo = {}
    def __len__(self):
        return 10
    def __getitem__(self, index):
        scale = random.random() + np.random.rand() + torch.rand(()).item()
        return dict(image=torch.full((3, 32, 32), index / 10) * scale, target=torch.tensor(scale))

@MODELS.register_module()
class Regression(BaseModel):
    def __init__(self):
        super().__init__()
        arch = dict(channels=(8, 16), layers=(1, 1), num_columns=2)
        self.backbone = RevCol(arch, out_indices=(1,), save_memory=True, drop_path_rate=0.5)
    def forward(self, image, target, mode='loss'):
        image = torch.stack(image)
        image = image + 0.1 * torch.randn_like(image)
        time.sleep(pause)
        return dict(loss=(self.backbone(image)[0].mean((1, 2, 3)) - torch.stack(target)).square().mean())

kind, work_dir, pause, resume = sys.argv[1], sys.argv[2], float(sys.argv[3]), bool(sys.argv[4])
by_epoch = kind == 'epochs'
loops = dict(
    epochs=dict(type='EpochBasedTrainLoop', max_epochs=6),
    iterations=dict(type='IterBasedTrainLoop', max_iters=30, val_interval=1000),
    finite=dict(type='IterBasedTrainLoop', max_iters=20, val_interval=1000))
sampler = dict(type='InfiniteSampler' if kind == 'iterations' else 'DefaultSampler', shuffle=True)
runner = ResumableRunner(
    model=dict(type='Regression'),
    work_dir=work_dir,
    train_dataloader=dict(
        batch_size=2, num_workers=2, persistent_workers=True, sampler=sampler, dataset=dict(type='Noise')),
    train_cfg=loops[kind],
    optim_wrapper=dict(
        type='AmpOptimWrapper',
        dtype='bfloat16',
        loss_scale=dict(init_scale=256.0, growth_interval=3),
        optimizer=dict(type='AdamW', lr=1e-2, weight_decay=0.05),
        constructor='LayerDecayOptimWrapperConstructor',
        paramwise_cfg=dict(decay_rate=0.8)),
    param_scheduler=dict(type='PolyLR', eta_min=0, begin=0, end=30, by_epoch=False),
    default_hooks=dict(
        checkpoint=dict(
            type='CheckpointHook', by_epoch=by_epoch, interval=1 if by_epoch else 4, max_keep_ckpts=3),
        logger=dict(type='LoggerHook', interval=1, log_metric_by_epoch=False)),
    custom_hooks=[dict(type='EMAHook', momentum=0.1)],
    randomness=dict(seed=None if resume else 3, deterministic=True),
    resume=resume)
runner.train()
(ema,) = (hook.ema_model for hook in runner.hooks if hasattr(hook, 'ema_model'))
final = {**runner.model.state_dict(), **{'ema.' + n: v for n, v in ema.state_dict().items()}}
final['loss scale'] = torch.tensor(runner.optim_wrapper.loss_scaler.get_scale())
assert final['loss scale'] > 256
torch.save(final, work_dir + '/final.pt')
"""


def start(kind, work_dir, pause=0.0, resume=False, device='cpu'):
    """Start a training in its own process group; it pauses in every forward pass."""
    hidden = {} if device == 'cuda' else {'CUDA_VISIBLE_DEVICES': ''}
    return subprocess.Popen(
        [sys.executable, '-c', TRAINING, kind, str(work_dir), str(pause), '1' if resume else ''],
        env={**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': SEARCHED, **hidden},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(process, expect=0):
    printed, _ = process.communicate(timeout=300)
    assert process.returncode == expect, printed[-4000:]
    return printed


def wait_for_iteration(work_dir, number):
    """Wait until a run has logged so many iterations."""
    for _ in range(1200):
        logs = sorted(work_dir.glob('*/*.log'))
        if logs and len(re.findall(r'\(train\)', logs[-1].read_text())) >= number:
            return
        time.sleep(0.05)
    raise AssertionError(f'no iteration {number} within a minute')


@pytest.fixture(scope='module')
def uninterrupted(tmp_path_factory):
    """Return the final weights of an uninterrupted run of a kind."""
    finals = {}

    def run(kind, device='cpu'):
        if (kind, device) not in finals:
            work_dir = tmp_path_factory.mktemp(kind)
            finish(start(kind, work_dir, device=device))
            finals[kind, device] = torch.load(work_dir / 'final.pt')
        return finals[kind, device]

    return run


@pytest.mark.slow
@pytest.mark.parametrize(
    'kind, device',
    [
        ('iterations', 'cpu'),
        ('finite', 'cpu'),
        ('epochs', 'cpu'),
        pytest.param('iterations', 'cuda', marks=pytest.mark.cuda),
    ],
)
def test_killed_and_resumed_run_equals_an_uninterrupted_one(kind, device, uninterrupted, tmp_path):
    expected = uninterrupted(kind, device)
    for number in (10, 3):  # in the second pass over the data, and soon after resuming
        process = start(kind, tmp_path, pause=0.1, resume=number == 3, device=device)
        wait_for_iteration(tmp_path, number)
        time.sleep(random.random() * 0.3)
        os.killpg(process.pid, signal.SIGKILL)
        finish(process, expect=-signal.SIGKILL)
    printed = finish(start(kind, tmp_path, resume=True, device=device))
    assert 'resumed epoch' in printed
    assert 'does not have a deterministic implementation' not in printed
    assert_same_weights(torch.load(tmp_path / 'final.pt'), expected)


@pytest.mark.slow
@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize('kind', ['iterations', 'epochs'])
def test_signal_lets_the_iteration_finish_and_saves_it(kind, number, uninterrupted, tmp_path):
    expected = uninterrupted(kind)
    process = start(kind, tmp_path, pause=0.1)
    wait_for_iteration(tmp_path, 6)
    os.killpg(process.pid, number)
    printed = finish(process, expect=INTERRUPTED)
    (saved,) = re.findall(rf'{number.name}: saved iter_(\d+).pth after \1 iterations', printed)
    assert newest_complete_checkpoint(tmp_path)[0].name == f'iter_{saved}.pth'
    printed = finish(start(kind, tmp_path, resume=True))
    assert f'iter: {saved}' in re.search('resumed epoch.*', printed)[0]
    assert_same_weights(torch.load(tmp_path / 'final.pt'), expected)
