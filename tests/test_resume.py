"""Runs that are interrupted and resumed equal one that was not."""

import os
import random
import re
import signal
import struct
import subprocess
import sys
import time
import zipfile

import pytest
import torch
from mmengine.fileio import get_file_backend

from revcol_mm.checkpoints.run_files import is_whole, newest_whole_checkpoint
from revcol_mm.training.interruption import INTERRUPTED
from revcol_mm.training.runner import ResumableRunner

from .subprocesses import SEARCHED

# A run with all that has a state: data that are augmented in workers, what the model draws, EMA, schedule,
# loss scale.
TRAINING = """
import random, sys, time
from functools import partial
import mmengine.optim.optimizer.amp_optimizer_wrapper as amp
import numpy as np
import torch
from mmengine.evaluator import BaseMetric
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, MODELS
from torch.utils.data import Dataset
from revcol_mm import RevCol
from revcol_mm.training.runner import ResumableRunner

if not torch.cuda.is_available():  # of this on a CPU MMEngine knows nothing
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
        if mode == 'predict':
            return [image]
        return dict(loss=(self.backbone(image)[0].mean((1, 2, 3)) - torch.stack(target)).square().mean())

kind, work_dir, pause, resume = sys.argv[1], sys.argv[2], float(sys.argv[3]), bool(sys.argv[4])
by_epoch = kind == 'epochs'
loops = dict(
    epochs=dict(type='EpochBasedTrainLoop', max_epochs=6),
    iterations=dict(type='IterBasedTrainLoop', max_iters=30, val_interval=1000),
    validating=dict(type='IterBasedTrainLoop', max_iters=15, val_interval=5),
    finite=dict(type='IterBasedTrainLoop', max_iters=20, val_interval=1000))
finite = kind in ('epochs', 'finite')
sampler = dict(type='DefaultSampler' if finite else 'InfiniteSampler', shuffle=True)
class Nothing(BaseMetric):
    def process(self, data_batch, data_samples):
        self.results.append(1)
    def compute_metrics(self, results):
        return dict(number=len(results))

validation = dict(
    val_dataloader=dict(
        batch_size=2, num_workers=1, sampler=dict(type='DefaultSampler'), dataset=dict(type='Noise')),
    val_cfg=dict(type='ValLoop'),
    val_evaluator=[Nothing()]) if kind == 'validating' else {}
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
    resume=resume,
    **validation)
runner.train()
(ema,) = (hook.ema_model for hook in runner.hooks if hasattr(hook, 'ema_model'))
final = {**runner.model.state_dict(), **{'ema.' + n: v for n, v in ema.state_dict().items()}}
final['loss scale'] = torch.tensor(runner.optim_wrapper.loss_scaler.get_scale())
assert final['loss scale'] > 256
torch.save(final, work_dir + '/final.pt')
"""


def start(kind, work_dir, pause=0.0, resume=False, prefix=(), device='cpu'):
    """Start a training in a process group of its own; give it a while between forward and backward."""
    hidden = {} if device == 'cuda' else {'CUDA_VISIBLE_DEVICES': ''}
    return subprocess.Popen(
        [*prefix, sys.executable, '-c', TRAINING, kind, str(work_dir), str(pause), '1' if resume else ''],
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


def wait_for_iteration(work_dir, number, of='train'):
    """Wait until a run's log says that an iteration is over."""
    for _ in range(1200):
        logs = sorted(work_dir.glob('*/*.log'))
        if logs and len(re.findall(rf'\({of}\)', logs[-1].read_text())) >= number:
            return
        time.sleep(0.05)
    raise AssertionError('the run does not get on')


@pytest.fixture(scope='module')
def unbroken(tmp_path_factory):
    """Final weights of runs that were not interrupted, by kind."""
    finals = {}

    def run(kind, device='cpu'):
        if (kind, device) not in finals:
            work_dir = tmp_path_factory.mktemp(kind)
            finish(start(kind, work_dir, device=device))
            finals[kind, device] = torch.load(work_dir / 'final.pt')
        return finals[kind, device]

    return run


def assert_same(work_dir, expected):
    final = torch.load(work_dir / 'final.pt')
    for name, weight in expected.items():
        assert torch.equal(final[name], weight), name


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
def test_a_run_killed_at_any_moment_and_resumed_equals_an_unbroken_one(kind, device, unbroken, tmp_path):
    expected = unbroken(kind, device)
    for number in (10, 3):  # after 8 iterations, within the second pass over the data, and soon after that
        process = start(kind, tmp_path, pause=0.1, resume=number == 3, device=device)
        wait_for_iteration(tmp_path, number)
        time.sleep(random.random() * 0.3)
        os.killpg(process.pid, signal.SIGKILL)
        finish(process, expect=-signal.SIGKILL)
    printed = finish(start(kind, tmp_path, resume=True, device=device))
    assert 'resumed epoch' in printed
    assert 'does not have a deterministic implementation' not in printed
    assert_same(tmp_path, expected)


@pytest.mark.slow
@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize('kind', ['iterations', 'epochs'])
def test_a_signal_lets_the_iteration_finish_and_nothing_is_done_twice(kind, number, unbroken, tmp_path):
    expected = unbroken(kind)
    process = start(kind, tmp_path, pause=0.1)
    wait_for_iteration(tmp_path, 6)
    os.killpg(process.pid, number)
    printed = finish(process, expect=INTERRUPTED)
    (saved,) = re.findall(rf'{number.name}: saved iter_(\d+).pth after \1 iterations', printed)
    assert newest_whole_checkpoint(tmp_path)[0].name == f'iter_{saved}.pth'
    printed = finish(start(kind, tmp_path, resume=True))
    assert f'iter: {saved}' in re.search('resumed epoch.*', printed)[0]
    assert_same(tmp_path, expected)


def test_a_signal_during_validation_saves_the_weights_not_their_averages(unbroken, tmp_path):
    expected = unbroken('validating')
    process = start('validating', tmp_path, pause=0.2)
    wait_for_iteration(tmp_path, 2, of='val')
    os.killpg(process.pid, signal.SIGTERM)
    assert 'SIGTERM: saved iter_5.pth' in finish(process, expect=INTERRUPTED)
    finish(start('validating', tmp_path, resume=True))
    assert_same(tmp_path, expected)


def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(unbroken, tmp_path):
    expected = unbroken('iterations')
    finish(start('iterations', tmp_path))
    (tmp_path / 'final.pt').unlink()
    last, middle = tmp_path / 'iter_30.pth', tmp_path / 'iter_28.pth'
    last.write_bytes(last.read_bytes()[:-1000])  # cut off
    with zipfile.ZipFile(middle) as archive:
        part = max(archive.infolist(), key=lambda part: part.file_size)
    content = bytearray(middle.read_bytes())
    lengths = struct.unpack_from('<HH', content, part.header_offset + 26)  # of its name and what is before it
    content[part.header_offset + 30 + sum(lengths) + part.file_size // 2] ^= 1  # a bit is wrong
    middle.write_bytes(content)
    os.utime(last)
    printed = finish(start('iterations', tmp_path, resume=True))
    damaged = re.findall(r'(iter_\d+.pth) is damaged and not used', printed)
    assert damaged == ['iter_30.pth', 'iter_28.pth']
    assert 'iter: 24' in re.search('resumed epoch.*', printed)[0]
    assert_same(tmp_path, expected)


def test_a_file_is_whole_or_not_there(tmp_path, monkeypatch):
    backend, path = get_file_backend(backend_args=dict(backend='atomic')), tmp_path / 'new' / 'a.pth'
    backend.put(b'old', path)
    assert path.read_bytes() == b'old' and path.stat().st_mode & 0o777 == 0o644

    def full(*_):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(os, 'fsync', full)
    with pytest.raises(OSError, match='No space left'):
        backend.put(b'new', path)
    assert path.read_bytes() == b'old'
    assert os.listdir(path.parent) == ['a.pth']


def test_on_a_full_disk_the_error_names_the_checkpoint_that_is_left(tmp_path):
    """A limit on the size of files stands in for the disk's: a checkpoint does not fit, a log does."""
    finish(start('iterations', tmp_path))
    size = (tmp_path / 'iter_28.pth').stat().st_size
    limited = ['bash', '-c', f'ulimit -f {size // 2048}; exec "$@"', 'bash']
    process = start('iterations', tmp_path / 'new', prefix=limited)
    printed = finish(process, expect=1)
    folder = tmp_path / 'new'
    message = f'cannot write iter_4.pth in {folder}: File too large; the newest checkpoint there is None'
    assert message in printed
    assert not [path for path in folder.rglob('*') if '.pth' in path.name]


def test_only_whole_checkpoints_of_a_run_are_found(tmp_path):
    assert newest_whole_checkpoint(tmp_path) == (None, [])
    for number, name in enumerate(('epoch_9', 'iter_3', 'best_mIoU_iter_4', 'iter_12')):
        meta = dict(iter=number, epoch=0, seed=0)
        torch.save(dict(a=torch.ones(100), meta=meta), tmp_path / f'{name}.pth')
    assert newest_whole_checkpoint(tmp_path) == (tmp_path / 'iter_12.pth', [])
    (tmp_path / 'iter_12.pth').write_bytes(b'')
    assert newest_whole_checkpoint(tmp_path) == (tmp_path / 'iter_3.pth', [tmp_path / 'iter_12.pth'])
    assert not is_whole(tmp_path / 'nothing.pth')


@pytest.mark.parametrize(
    'options, message',
    [
        (
            dict(resume=True, load_from='nothing.pth'),
            'cannot resume: nothing.pth is damaged or does not exist',
        ),
    ],
)
def test_what_would_lose_a_run_is_an_error_before_it_begins(options, message, tmp_path):
    with pytest.raises((ValueError, RuntimeError), match=message):
        ResumableRunner(model=torch.nn.Identity(), work_dir=str(tmp_path), **options)


def test_getattr_in_a_checkpoint_gives_a_log_buffer_s_statistics_and_nothing_else(tmp_path):
    class Asks:
        def __reduce__(self):
            return getattr, (torch.Tensor, 'tolist')

    torch.save({'asks': Asks()}, tmp_path / 'asks.pth')
    with pytest.raises(Exception, match='getattr.*tolist'):
        torch.load(tmp_path / 'asks.pth', weights_only=True)


def test_testing_builds_no_training_data(tmp_path):
    """Hooks ask the runner for its iteration, of which there are none."""
    runner = ResumableRunner(
        model=torch.nn.Identity(),
        work_dir=str(tmp_path),
        train_dataloader=dict(dataset=dict(type='NotThere')),
        train_cfg=dict(by_epoch=False, max_iters=1),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)),
    )
    assert (runner.iter, runner.epoch) == (0, 0)
