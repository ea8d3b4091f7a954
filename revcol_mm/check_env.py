"""Report which OpenMMLab packages are installed, which tasks can run, and how to install what is missing.

``python -m revcol_mm.check_env`` prints a report, and exits with status 1 if a package is missing or broken.
MMEngine's ``collect_env``, with which every run's log begins, lists versions but does not judge them.
This file imports only the standard library.
"""

import argparse
import importlib
import platform
import re
import sys
import textwrap
from importlib import metadata
from types import ModuleType
from typing import NamedTuple, Sequence

from .mmcv_ops import sort_ops

# The versions that the tests run with. Both sets of packages have the same import names.
UPSTREAM = {
    'mmengine': ('mmengine', '0.10.7'),
    'mmcv': ('mmcv-lite', '2.1.0'),  # without compiled ops, for which revcol_mm.mmcv_ops is a substitute
    'mmdet': ('mmdet', '3.3.0'),
    'mmseg': ('mmsegmentation', '1.2.2'),
    'mmpretrain': ('mmpretrain', '1.2.0'),
}
ONEDL = {
    'mmengine': ('onedl-mmengine', '0.10.12'),
    'mmcv': ('onedl-mmcv', '2.3.6'),
    'mmdet': ('onedl-mmdetection', '3.5.1'),
    'mmseg': ('onedl-mmsegmentation', '1.4.2'),
    'mmpretrain': ('onedl-mmpretrain', '1.3.6'),
}
SETS = {'upstream': UPSTREAM, 'onedl': ONEDL}
COMPILED = 'mmcv'  # the distribution with compiled ops, an alternative to mmcv-lite
# The oldest and the newest versions that the tests run with.
TORCH = ('2.10.0', '2.14.1')
PYTHON = ('3.10', '3.13')

DISTRIBUTIONS = {  # by import name, where they differ
    'PIL': 'pillow',
    'cv2': 'opencv-python-headless',
    'modelindex': 'model-index',
    'sklearn': 'scikit-learn',
    'yaml': 'PyYAML',
}

CORE = ('torch', 'cv2', 'mmengine')
DETECTION = (*CORE, 'tensorboard', 'mmcv', 'torchvision', 'mmcv.ops', 'mmdet')
TASKS = {
    'segmentation': (*DETECTION, 'ftfy', 'regex', 'mmseg'),
    'detection': DETECTION,
    'classification': (*CORE, 'tensorboard', 'mmcv', 'mmpretrain'),
}
SCOPES = {'mmseg': 'segmentation', 'mmdet': 'detection', 'mmpretrain': 'classification'}


class Part(NamedTuple):
    """State of one importable package or module.

    Args:
        name: Import name.
        state: Its version, or what is wrong.
        fix: The command that repairs it; None if nothing is wrong.
    """

    name: str
    state: str
    fix: str | None


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _distributions(name: str) -> dict[str, str]:
    """Return the installed distributions of an OpenMMLab package, with the set that each belongs to."""
    sets = {SETS[label][name][0]: label for label in SETS}
    if name == 'mmcv':
        sets[COMPILED] = 'upstream'
    return {distribution: label for distribution, label in sets.items() if _version(distribution)}


def installed_set() -> str | None:
    """Return 'upstream' or 'onedl', judged by MMEngine first; None if no OpenMMLab package is installed."""
    return next((label for name in UPSTREAM for label in _distributions(name).values()), None)


def examine(name: str) -> Part:
    """Import a package or module, and report its version or what is wrong with it."""
    label = installed_set() or 'upstream'
    package = name.split('.')[0]
    fix = _fix(package, label)
    if package in UPSTREAM:
        found = _distributions(package)
        remove = f'pip uninstall -y {" ".join(found)} && {fix}'
        if len(found) > 1:
            return Part(name, f'two distributions, {" ".join(found)}', remove)
        if found and label not in found.values():
            return Part(name, f'{" ".join(found)}, but MMEngine is {label}', remove)
        if COMPILED in found:
            fix = remove
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        needed = (error.name or package).split('.')[0]
        if needed not in (package, 'mmcv'):
            return Part(name, f'without {needed}, which it imports', _fix(needed, label))
        return Part(name, 'missing' if error.name == name else f'broken: {error}', fix)
    except Exception as error:  # AssertionError for mismatched versions, OSError for compiled ops, and others
        return Part(name, f'broken: {error}', fix)
    version = getattr(module, '__version__', '')
    if name == 'torch':
        return _examine_torch(module, fix)
    if name == 'mmcv.ops':
        return _examine_ops(module, fix)
    if name not in UPSTREAM:
        return Part(name, version, None)
    tested = SETS[label][name][1]
    return Part(name, _tested(version, tested, tested), None)


def _fix(package: str, label: str) -> str:
    """Return the command that installs a package; ``label`` is the set to take OpenMMLab's packages from."""
    if package in UPSTREAM:
        return 'pip install {}=={}'.format(*SETS[label][package])
    if package == 'torch':
        return f'pip install torch=={TORCH[1]} torchvision'
    if package == 'torchvision':  # each version is built for one version of torch, which is to stay
        return f'pip install --force-reinstall torch=={_version("torch") or TORCH[1]} torchvision'
    if package == 'cv2':  # the headless one, because opencv-python needs libGL, which servers lack
        return 'pip install --force-reinstall --no-deps opencv-python-headless'
    return f'pip install {DISTRIBUTIONS.get(package, package)}'


def _examine_torch(torch: ModuleType, fix: str) -> Part:
    """Report torch's version, known vulnerabilities in reading checkpoints, and CUDA devices."""
    version = torch.__version__.split('+')[0]
    if _numbers(version) < (2, 6):
        return Part('torch', f'{version}, in which checkpoints can run code', fix)
    device = f'CUDA {torch.version.cuda}' if torch.version.cuda else 'no CUDA'
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    state = f'{_tested(version, *TORCH)}, {device}, {", ".join(gpus) or "no GPU"}'
    if _numbers(version) < (2, 10):
        state += '; CVE-2026-24747: untrusted checkpoints can corrupt memory, fixed in torch 2.10'
    return Part('torch', state, None)


def _examine_ops(ops: ModuleType, fix: str) -> Part:
    """Report whether MMCV's ops are compiled, and for which CUDA."""
    import torch

    cuda = ops.get_compiling_cuda_version()
    if cuda == 'not available' and torch.cuda.is_available():
        return Part('mmcv.ops', 'compiled without CUDA', fix)
    return Part('mmcv.ops', f'compiled, CUDA {cuda}' if sort_ops() is None else 'on torchvision', None)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r'\d+', version)[:3]))


def _tested(version: str, oldest: str, newest: str) -> str:
    """Return a version; if it is outside of the tested ones, with a note that says so."""
    numbers, last = _numbers(version), _numbers(newest)
    if _numbers(oldest) <= numbers and numbers[: len(last)] <= last:
        return version
    return f'{version} (tests run on {oldest if oldest == newest else f"{oldest} to {newest}"})'


def require_parts(what: str, names: Sequence[str]) -> None:
    """End the program with a repair command if a package cannot be imported or is of the wrong set.

    Args:
        what: What needs the packages, for the message.
        names: Import names.
    """
    for name in names:
        part = examine(name)
        if part.fix:
            sys.exit(
                f'error: {what} cannot run: {part.name} is {part.state}.\nFix: {part.fix}\n'
                'Full report: python -m revcol_mm.check_env'
            )


def require(task: str) -> None:
    """Call :func:`require_parts` for 'detection', 'segmentation' or 'classification'."""
    require_parts(task, TASKS[task])


def main() -> int:
    """Print the report, and return the exit status."""
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    parts = {name: examine(name) for names in TASKS.values() for name in names}
    python = _tested(platform.python_version(), *PYTHON)
    print(f'Python {python}, OpenMMLab set: {installed_set() or "none"}')
    for part in parts.values():
        print(f'{part.name:14} {part.state}')
    print()
    for task, names in TASKS.items():
        lacking = [name for name in names if parts[name].fix]
        print(f'{task:14} ' + (f'cannot run without {", ".join(lacking)}' if lacking else 'can run'))
    if parts['mmcv.ops'].fix is None and (ops := sort_ops()):
        supplied, missing = ops
        print()
        print(textwrap.fill(f'mmcv.ops on torchvision: {", ".join(supplied)}', 100, subsequent_indent='  '))
        print(f'{len(missing)} are missing: rotated boxes, point clouds and others, see docs/environment.md')
    fixes = dict.fromkeys(part.fix for part in parts.values() if part.fix)
    if fixes:
        print('\nTo repair it, run in this order:', *fixes, sep='\n  ')
    return 1 if fixes else 0


if __name__ == '__main__':
    sys.exit(main())
