"""Runs in processes of their own that are killed or signalled and resumed equal uninterrupted ones."""

import os
import re
import select
import signal
import subprocess
import sys

import pytest
import torch

from revcol_mm.checkpoints.run_files import newest_complete_checkpoint
from revcol_mm.training.interruption import INTERRUPTED

from .checkpoints import assert_same_weights
from .subprocesses import SEARCHED

# A run with every kind of state: augmentation in workers, random numbers in the model, averaged weights,
# schedule, loss scale. It stops where the test wants it to, until its standard input is closed.
TRAINING = """
import os, random, sys
from functools import partial
from pathlib import Path
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

kind, work_dir, resume, stop, stopped = sys.argv[1], sys.argv[2], bool(sys.argv[3]), *sys.argv[4:]

def report_and_wait():
    os.write(int(stopped), b'.')
    sys.stdin.read()

if stop == 'saving':
    fsync = os.fsync
    def stop_before_renaming(descriptor):
        if list(Path(work_dir).glob('.*.pth.part')):
            report_and_wait()
        fsync(descriptor)
    os.fsync = stop_before_renaming

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
        self.iteration = 0
    def forward(self, image, target, mode='loss'):
        self.iteration += 1
        if stop == str(self.iteration):
            report_and_wait()
        image = torch.stack(image)
        image = image + 0.1 * torch.randn_like(image)
        return dict(loss=(self.backbone(image)[0].mean((1, 2, 3)) - torch.stack(target)).square().mean())

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


def start(kind, work_dir, stop='', resume=False, device='cpu'):
    """Start a training in its own process group and, if it is to stop, wait until it has.

    ``stop`` is a number of iterations since the start, in the last of which the run stops, or 'saving': when
    its first checkpoint is written but has not replaced the file of that name.
    """
    hidden = {} if device == 'cuda' else {'CUDA_VISIBLE_DEVICES': ''}
    reading, writing = os.pipe()
    options = kind, work_dir, '1' if resume else '', stop, writing
    process = subprocess.Popen(
        [sys.executable, '-c', TRAINING, *map(str, options)],
        env={**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': SEARCHED, **hidden},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        pass_fds=[writing],
        text=True,
        start_new_session=True,
    )
    os.close(writing)
    with open(reading, 'rb') as stopped:
        if stop and not (select.select([stopped], [], [], 600)[0] and stopped.read(1)):
            process.kill()
            raise AssertionError(f'the run did not stop:\n{finish(process, -signal.SIGKILL)[-4000:]}')
    return process


def finish(process, expect=0):
    """Let a stopped process continue, and return what it prints until it ends."""
    printed, _ = process.communicate(timeout=600)
    assert process.returncode == expect, printed[-4000:]
    return printed


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
    for stop in (11, 7, 'saving'):  # the first one in the third pass over the data
        process = start(kind, tmp_path, stop, resume=stop != 11, device=device)
        os.killpg(process.pid, signal.SIGKILL)
        finish(process, expect=-signal.SIGKILL)
    assert len(list(tmp_path.glob('.*.pth.part'))) == 1
    printed = finish(start(kind, tmp_path, resume=True, device=device))
    assert 'resumed epoch' in printed
    assert 'does not have a deterministic implementation' not in printed
    assert_same_weights(torch.load(tmp_path / 'final.pt'), expected)


@pytest.mark.slow
@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize('kind', ['iterations', 'epochs'])
def test_signal_lets_the_iteration_finish_and_saves_it(kind, number, uninterrupted, tmp_path):
    expected = uninterrupted(kind)
    process = start(kind, tmp_path, stop=7)
    os.killpg(process.pid, number)
    printed = finish(process, expect=INTERRUPTED)
    assert f'{number.name}: saved iter_7.pth after 7 iterations' in printed
    assert newest_complete_checkpoint(tmp_path)[0].name == 'iter_7.pth'
    printed = finish(start(kind, tmp_path, resume=True))
    assert 'iter: 7' in re.search('resumed epoch.*', printed)[0]
    assert_same_weights(torch.load(tmp_path / 'final.pt'), expected)
