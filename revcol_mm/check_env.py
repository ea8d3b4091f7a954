"""Tell which OpenMMLab set is installed, what can run on it, and how to mend what is missing.

``python -m revcol_mm.check_env`` prints a report and exits with 1 if something is to be mended. Nothing
but the standard library is needed to import this file.
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

# The versions that this project's tests run on. Both sets have the same import names.
UPSTREAM = {
    'mmengine': ('mmengine', '0.10.7'),
    'mmcv': ('mmcv-lite', '2.1.0'),  # mmcv without its compiled ops, which revcol_mm.mmcv_ops replaces
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
COMPILED = 'mmcv'  # the distribution of mmcv-lite's modules with compiled ops, instead of it
# The oldest and the newest that the tests run on.
TORCH = ('2.10.0', '2.14.1')
PYTHON = ('3.10', '3.13')

DISTRIBUTIONS = {  # of packages with another import name
    'PIL': 'pillow',
    'cv2': 'opencv-python-headless',
    'modelindex': 'model-index',
    'sklearn': 'scikit-learn',
    'yaml': 'PyYAML',
}

CORE = ('torch', 'cv2', 'mmengine')
TASKS = {
    'segmentation': (
        *CORE,
        'tensorboard',
        'mmcv',
        'torchvision',
        'mmcv.ops',
        'mmdet',
        'ftfy',
        'regex',
        'mmseg',
    ),
    'detection': (*CORE, 'tensorboard', 'mmcv', 'torchvision', 'mmcv.ops', 'mmdet'),
    'classification': (*CORE, 'tensorboard', 'mmcv', 'mmpretrain'),
}
SCOPES = {'mmseg': 'segmentation', 'mmdet': 'detection', 'mmpretrain': 'classification'}


class Part(NamedTuple):
    """What was found of one importable part.

    Args:
        name: Import name.
        state: Version, and what is wrong, in words.
        fix: The command that mends it; None if nothing is wrong.
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
    """Installed distributions that provide an OpenMMLab import name, and the set that each belongs to."""
    sets = {SETS[label][name][0]: label for label in SETS}
    if name == 'mmcv':
        sets[COMPILED] = 'upstream'
    return {distribution: label for distribution, label in sets.items() if _version(distribution)}


def installed_set() -> str | None:
    """'upstream', 'onedl' or, with no OpenMMLab package installed, None; MMEngine decides."""
    return next((label for name in UPSTREAM for label in _distributions(name).values()), None)


def examine(name: str) -> Part:
    """Try to import a part and say what is wrong with it, if anything is."""
    label = installed_set() or 'upstream'
    package = name.split('.')[0]
    if package in UPSTREAM:
        found = _distributions(package)
        fix = 'pip install {}=={}'.format(*SETS[label][package])
        remove = f'pip uninstall -y {" ".join(found)} && {fix}'
        if len(found) > 1:
            return Part(name, f'two distributions, {" ".join(found)}', remove)
        if found and label not in found.values():
            return Part(name, f'{" ".join(found)}, but MMEngine is {label}', remove)
        if COMPILED in found:
            fix = remove
    elif package == 'torch':
        fix = f'pip install torch=={TORCH[1]} torchvision'
    elif package == 'torchvision':  # each is made for one torch, which is to stay
        fix = f'pip install --force-reinstall torch=={_version("torch") or TORCH[1]} torchvision'
    elif package == 'cv2':  # the plain one wants libGL, which servers lack
        fix = 'pip install --force-reinstall --no-deps opencv-python-headless'
    else:
        fix = f'pip install {DISTRIBUTIONS.get(package, package)}'
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        needed = (error.name or package).split('.')[0]
        if needed not in (package, 'mmcv'):
            fix = f'pip install {DISTRIBUTIONS.get(needed, needed)}'
            return Part(name, f'without {needed}, which it imports', fix)
        return Part(name, 'missing' if error.name == name else f'broken: {error}', fix)
    except Exception as error:  # packages assert on each other's versions; compiled ops fail as OSError
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


def _examine_torch(torch: ModuleType, fix: str) -> Part:
    """Its version, whether checkpoints are safe with it, and what it computes on."""
    version = torch.__version__.split('+')[0]
    if _numbers(version) < (2, 6):
        return Part('torch', f'{version}, which runs the code of checkpoints', fix)
    device = f'CUDA {torch.version.cuda}' if torch.version.cuda else 'no CUDA'
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    state = f'{_tested(version, *TORCH)}, {device}, {", ".join(gpus) or "no GPU"}'
    if _numbers(version) < (2, 10):
        state += '; CVE-2026-24747: checkpoints of others can corrupt memory, which torch 2.10 mends'
    return Part('torch', state, None)


def _examine_ops(ops: ModuleType, fix: str) -> Part:
    """Whether they are compiled, and for what."""
    import torch

    cuda = ops.get_compiling_cuda_version()
    if cuda == 'not available' and torch.cuda.is_available():
        return Part('mmcv.ops', 'compiled without CUDA', fix)
    return Part('mmcv.ops', f'compiled, CUDA {cuda}' if sort_ops() is None else 'on torchvision', None)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r'\d+', version)[:3]))


def _tested(version: str, oldest: str, newest: str) -> str:
    """A version, and those that the tests run on if it is not between them."""
    numbers, last = _numbers(version), _numbers(newest)
    if _numbers(oldest) <= numbers and numbers[: len(last)] <= last:
        return version
    return f'{version} (tests run on {oldest if oldest == newest else f"{oldest} to {newest}"})'


def require_parts(what: str, names: Sequence[str]) -> None:
    """End the program, with the line that mends it, if a part cannot be imported or is mismatched.

    Args:
        what: What needs the parts, for the message.
        names: Import names.
    """
    for name in names:
        part = examine(name)
        if part.fix:
            sys.exit(
                f'error: {what} cannot run: {part.name} is {part.state}.\nFix: {part.fix}\n'
                'The whole report: python -m revcol_mm.check_env'
            )


def require(task: str) -> None:
    """:func:`require_parts` of 'detection', 'segmentation' or 'classification'."""
    require_parts(task, TASKS[task])


def main() -> int:
    """Print the report; return the exit status."""
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    parts = {name: examine(name) for names in TASKS.values() for name in names}
    python = _tested(platform.python_version(), *PYTHON)
    print(f'Python {python}, OpenMMLab set: {installed_set() or "none"}')
    for part in parts.values():
        print(f'{part.name:14} {part.state}')
    print()
    for task, names in TASKS.items():
        lacking = [name for name in names if parts[name].fix]
        print(f'{task:14} ' + (f'cannot run, for want of {", ".join(lacking)}' if lacking else 'can run'))
    if parts['mmcv.ops'].fix is None and (ops := sort_ops()):
        supplied, missing = ops
        print()
        print(textwrap.fill(f'mmcv.ops on torchvision: {", ".join(supplied)}', 100, subsequent_indent='  '))
        print(f'{len(missing)} are missing: rotated boxes, point clouds and others, see docs/environment.md')
    fixes = dict.fromkeys(part.fix for part in parts.values() if part.fix)
    if fixes:
        print('\nTo mend it, in this order:', *fixes, sep='\n  ')
    return 1 if fixes else 0


if __name__ == '__main__':
    sys.exit(main())
