"""Tell which OpenMMLab set is installed, what can run on it, and how to mend what is missing.

``python -m revcol_mm.check_env`` prints a report and exits with 1 if something is to be mended. Nothing
but the standard library is needed to import this file.
"""

import importlib
import platform
import re
import sys
from importlib import metadata
from typing import NamedTuple, Sequence

# The versions that this project's tests run on. Both sets have the same import names.
UPSTREAM = {
    'mmengine': ('mmengine', '0.10.7'),
    'mmcv': ('mmcv', '2.1.0'),
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
# The oldest and the newest that the tests run on. Older torch cannot read checkpoints safely.
TORCH = ('2.6.0', '2.9.1')
PYTHON = ('3.10', '3.12')

DISTRIBUTIONS = {'sklearn': 'scikit-learn'}  # of packages with another import name

CORE = ('torch', 'cv2', 'mmengine')
TASKS = {
    'segmentation': (*CORE, 'tensorboard', 'mmcv', 'mmcv.ops', 'ftfy', 'regex', 'mmseg', 'mmdet'),
    'detection': (*CORE, 'tensorboard', 'mmcv', 'mmcv.ops', 'mmdet'),
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


def _distributions(name: str) -> dict[str, str]:
    """Installed distributions, with versions, that provide an OpenMMLab import name; by set."""
    found = {}
    for label, packages in SETS.items():
        try:
            found[label] = metadata.version(packages[name][0])
        except metadata.PackageNotFoundError:
            pass
    return found


def installed_set() -> str | None:
    """'upstream', 'onedl' or, with no OpenMMLab package installed, None; MMEngine decides."""
    for name in UPSTREAM:
        found = _distributions(name)
        if found:
            return next(iter(found))
    return None


def _install_line(name: str, label: str) -> str:
    """The command that installs an OpenMMLab package of a set."""
    distribution, version = SETS[label][name]
    if name != 'mmcv':
        return f'pip install {distribution}=={version}'
    # Its ops are compiled against the torch that is there, which an isolated build would not see.
    return (
        "pip install 'setuptools<81' ninja psutil && "
        'pip install --no-build-isolation --no-cache-dir --force-reinstall --no-deps '
        f'{distribution}=={version}'
    )


def examine(name: str) -> Part:
    """Try to import a part and say what is wrong with it, if anything is."""
    label = installed_set() or 'upstream'
    package = name.split('.')[0]
    if package in UPSTREAM:
        found = _distributions(package)
        fix = _install_line(package, label)
        if len(found) > 1:
            names = ' '.join(SETS[each][package][0] for each in found)
            return Part(name, f'two distributions, {names}', f'pip uninstall -y {names} && {fix}')
        if found and label not in found:
            other = SETS[next(iter(found))][package][0]
            return Part(name, f'{other}, but MMEngine is {label}', f'pip uninstall -y {other} && {fix}')
    elif package == 'torch':
        fix = f'pip install torch=={TORCH[1]} torchvision'
    elif package == 'cv2':  # the plain one wants libGL, which servers lack
        fix = 'pip install --force-reinstall --no-deps opencv-python-headless'
    else:
        fix = f'pip install {DISTRIBUTIONS.get(package, package)}'
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and error.name.split('.')[0] not in (package, 'mmcv'):
            return Part(name, f'needs {error.name}', f'pip install {error.name}')
        return Part(name, 'missing' if error.name == name else f'broken: {error}', fix)
    except Exception as error:  # packages assert on each other's versions; compiled ops fail as OSError
        return Part(name, f'broken: {error}', fix)
    version = getattr(module, '__version__', '')
    if name == 'torch':
        version = version.split('+')[0]
        if _numbers(version) < _numbers(TORCH[0]):
            return Part(name, f'{version}, older than {TORCH[0]}', fix)
        return Part(name, _tested(version, *TORCH), None)
    if name == 'mmcv.ops':
        import torch

        compiled = module.get_compiling_cuda_version()
        if torch.cuda.is_available() and compiled == 'not available':
            return Part(name, 'compiled without CUDA', f'export FORCE_CUDA=1; {fix}')
        return Part(name, f'compiled, CUDA {compiled}', None)
    if name not in UPSTREAM:
        return Part(name, version, None)
    tested = SETS[label][name][1]
    return Part(name, _tested(version, tested, tested), None)


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
    parts = {name: examine(name) for names in TASKS.values() for name in names}
    python = _tested(platform.python_version(), *PYTHON)
    print(f'Python {python}, OpenMMLab set: {installed_set() or "none"}')
    for part in parts.values():
        print(f'{part.name:14} {part.state}')
    print()
    for task, names in TASKS.items():
        lacking = [name for name in names if parts[name].fix]
        print(f'{task:14} ' + (f'cannot run, for want of {", ".join(lacking)}' if lacking else 'can run'))
    fixes = dict.fromkeys(part.fix for part in parts.values() if part.fix)
    if fixes:
        print('\nTo mend it, in this order:', *fixes, sep='\n  ')
    return 1 if fixes else 0


if __name__ == '__main__':
    sys.exit(main())
