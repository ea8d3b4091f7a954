"""The package can be imported, train and be interrupted on simulated Windows and macOS."""

import ast
import importlib
import os
import platform
import re
import signal
import subprocess
import sys

import pytest

from .subprocesses import REPO, run

# Patterns of names that are missing on a system, according to 'Availability' in Python's documentation.
NOT_ON_MACOS = dict(
    modules='spwd',
    os=r"""sched_\w+ [gs]etres[ug]id posix_fa\w+ pipe2 eventfd\w* memfd_create getrandom copy_file_range
    splice [gs]etxattr listxattr removexattr fdatasync O_DIRECT O_PATH O_TMPFILE P_PIDFD pidfd_open""",
    signal='sigwaitinfo sigtimedwait SIGRTMIN SIGRTMAX SIGPOLL SIGPWR SIGSTKFLT SIGCLD',
)
ON_WINDOWS = """SIGABRT SIGFPE SIGILL SIGINT SIGSEGV SIGTERM SIG_DFL SIG_IGN NSIG Signals Handlers signal
    getsignal default_int_handler set_wakeup_fd raise_signal strsignal valid_signals"""
NOT_ON_WINDOWS = dict(
    modules='crypt fcntl grp nis pty pwd readline resource spwd syslog termios tty',
    os=NOT_ON_MACOS['os']
    + r""" EX_\w+ W[A-Z]\w+ CLD_\w+ F_T?U?(LOCK|TEST) PRIO_\w+ RTLD_\w+ SF_\w+ POSIX_\w+ ST_\w+
    O_(CLOEXEC|DIRECTORY|D?SYNC|NOCTTY|NOFOLLOW|NONBLOCK|NDELAY|ASYNC|LARGEFILE|NOATIME|RSYNC)
    posix_\w+ fork(pty)? killpg nice uname(_result)? sync l?chroot ch(flags|own) [fl]ch(own|mod|flags|dir)
    P_(ALL|PID|PGID) ctermid lockf openpty
    [gs]et(e|re)?[ug]id [gs]etpgrp [gs]etpgid [gs]etsid [gs]etgroups initgroups getgrouplist [gs]etpriority
    f?statvfs mk(fifo|nod) major minor makedev f?pathconf(_names)? sysconf(_names)? confstr(_names)?
    getloadavg register_at_fork wait([34]|id)? spawn[lv]pe? p(read|write)v? readv writev sendfile
    tc[gs]etpgrp ttyname""",
    signal=' '.join({name for name in dir(signal) if name[0] != '_'} - set(ON_WINDOWS.split())),
)
SYSTEMS = {'Windows': NOT_ON_WINDOWS, 'macOS': NOT_ON_MACOS}


def imported(path):
    """Yield the modules that a file imports anywhere, except by relative imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module


def is_lacking(system, module, name):
    """Return whether a name of os or signal is missing on a system."""
    patterns = SYSTEMS[system].get(module, '').split()
    return any(re.fullmatch(pattern, name) for pattern in patterns)


def lose(system):
    """Remove everything that a system lacks from this process."""
    platform.system = lambda: dict(macOS='Darwin').get(system, system)  # used by MMEngine
    subprocess._USE_POSIX_SPAWN = False  # else Python 3.13 on Linux uses names that are removed here
    for name in SYSTEMS[system]['modules'].split():
        sys.modules[name] = None  # importing it fails
    for module in (os, signal):
        for name in dir(module):
            if is_lacking(system, module.__name__, name):
                delattr(module, name)


FILES = sorted(path for folder in ('revcol_mm', 'tools') for path in (REPO / folder).rglob('*.py'))


def import_others(*more):
    """Import the modules of other packages that the package and its tools import, and some more."""
    for name in sorted({name for path in FILES for name in imported(path)} | {*more}):
        if name.split('.')[0] not in {'revcol_mm', *NOT_ON_WINDOWS['modules'].split()}:
            try:
                importlib.import_module(name)
            except (ImportError, AssertionError):  # not installed, or needs mmcv's ops
                pass


@pytest.mark.parametrize('path', FILES, ids=lambda path: path.relative_to(REPO).as_posix())
def test_no_name_is_used_that_windows_lacks(path):
    """Names that macOS lacks are among them."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            module, name = node.value.id, node.attr
            assert not is_lacking('Windows', module, name), f'{module}.{name}, line {node.lineno}'


# Other packages are imported before names are removed, because they support these systems themselves.
IMPORT = """
import importlib, pkgutil, sys
from tests.test_portability import NOT_ON_WINDOWS, import_others, lose
import_others('yapf', 'timm', 'mmpretrain.models')  # OpenMMLab's packages import them later
lose(sys.argv[1])
import filelock
if sys.argv[1] == 'Windows':  # whose kind of file lock does not exist on Linux
    filelock.FileLock = filelock.SoftFileLock
import revcol_mm
assert revcol_mm.RevCol
names = [part.name for part in pkgutil.walk_packages(revcol_mm.__path__, 'revcol_mm.')]
assert len(names) > 40
for name in names:
    try:
        importlib.import_module(name)
    except ImportError as error:  # a package is not installed
        if error.name in {'os', 'signal', *NOT_ON_WINDOWS['modules'].split()}:
            raise
"""

# On macOS with two workers, which also get the signal to the process group.
TRAIN = """
import os, signal
import torch
from mmengine.model import BaseModel
from torch.utils.data import Dataset
from revcol_mm import ColumnStatisticsHook, RevCol
from revcol_mm.training.runner import ResumableRunner

system, work_dir = sys.argv[1:]
open_files = lambda: [os.path.realpath(f'/proc/self/fd/{number}') for number in os.listdir('/proc/self/fd')]

def refuse_open(function):  # as Windows does
    def checked(path, *args, **kwargs):
        # filelock handles its own files differently on Windows.
        own = os.path.basename(path).startswith(('.filelock-probe', '.lock'))
        assert own or os.path.realpath(path) not in open_files(), path
        return function(path, *args, **kwargs)
    return checked

os.replace, os.rename, os.unlink, os.remove = map(refuse_open, (os.replace, os.rename, os.unlink, os.remove))

class Noise(Dataset):
    metainfo = {}
    def __len__(self):
        return 8
    def __getitem__(self, index):
        return dict(image=torch.rand(3, 32, 32))

class Regression(BaseModel):
    def __init__(self):
        super().__init__()
        self.backbone = RevCol(dict(channels=(8, 16), layers=(1, 1), num_columns=2), out_indices=(1,))
    def forward(self, image, mode='loss'):
        if runner.iter == interrupted_at:
            signal.raise_signal(signal.SIGINT) if system == 'Windows' else os.killpg(0, signal.SIGTERM)
        return dict(loss=self.backbone(torch.stack(image))[0].square().mean())

def train(resume):
    global runner
    runner = ResumableRunner(
        model=Regression(),
        work_dir=work_dir,
        train_dataloader=dict(
            batch_size=2,
            num_workers=0 if system == 'Windows' else 2,
            sampler=dict(type='InfiniteSampler'),
            dataset=Noise()),
        train_cfg=dict(type='IterBasedTrainLoop', max_iters=5),
        optim_wrapper=dict(optimizer=dict(type='AdamW', lr=1e-3)),
        default_hooks=dict(
            checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=1, max_keep_ckpts=2)),
        custom_hooks=[ColumnStatisticsHook(interval=1)],
        resume=resume)
    runner.train()

if system == 'macOS':
    os.setpgid(0, 0)
interrupted_at = 2
try:
    train(resume=False)
except SystemExit as exit:
    assert exit.code == 75
interrupted_at = None
train(resume=True)
print(sorted(os.listdir(work_dir)))
"""


@pytest.mark.parametrize('system', SYSTEMS)
def test_package_imports_trains_and_is_interrupted_on(system, tmp_path):
    printed = run('-c', IMPORT + TRAIN, system, tmp_path)
    assert 'SIGINT' in printed if system == 'Windows' else 'SIGTERM' in printed
    assert 'saved iter_3.pth after 3 iterations' in printed
    assert 'resumed epoch: 0, iter: 3' in printed
    assert 'iter_5.pth' in printed.splitlines()[-1] and '.tmp' not in printed.splitlines()[-1]
    assert ('peak memory' in printed) == (system != 'Windows')


SHIELDED = """
import os, signal, sys, time
from revcol_mm.training.runner import ResumableRunner

method, pipe = sys.argv[1:]

class Stuck:
    def __len__(self):
        return 3
    def __getitem__(self, index):
        if index:
            with open(pipe) as released:  # waits until the pipe is opened for writing,
                released.read()  # and until it is closed
        if index == 2:
            time.sleep(1000)
        return os.getpid()

if __name__ == '__main__':
    os.setpgid(0, 0)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    loader = ResumableRunner.build_dataloader(
        dict(
            dataset=Stuck(),
            batch_size=1,
            num_workers=1,
            sampler=dict(type='DefaultSampler', shuffle=False),
            collate_fn=dict(type='pseudo_collate'),
            multiprocessing_context=method,
        )
    )
    batches = iter(loader)
    (worker,) = next(batches)
    with open(pipe, 'w'):  # waits for the worker
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM):
            os.killpg(0, number)
    assert next(batches) == [worker]
    open(pipe, 'w').close()  # the worker is in the last item when this process ends
    print('worker', worker)
"""


@pytest.mark.parametrize('start_method', ['fork', 'spawn'])
def test_worker_ignores_signals_to_the_group_and_ends_with_its_parent(start_method, tmp_path):
    (tmp_path / 'main.py').write_text(SHIELDED)
    os.mkfifo(tmp_path / 'pipe')
    worker = int(run(tmp_path / 'main.py', start_method, tmp_path / 'pipe').split()[-1])
    with pytest.raises(ProcessLookupError):
        os.kill(worker, 0)
