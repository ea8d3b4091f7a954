"""check_env tells what is installed and prints the exact line that mends what is not."""

import re
from importlib import metadata

import pytest

from revcol_mm import check_env

from .subprocesses import REPO, run


@pytest.fixture
def distributions(monkeypatch):
    """Pretend that certain distributions are installed."""

    def pretend(**versions):
        versions = {name.replace('_', '-'): version for name, version in versions.items()}

        def version(name):
            if name not in versions:
                raise metadata.PackageNotFoundError(name)
            return versions[name]

        monkeypatch.setattr(check_env.metadata, 'version', version)

    return pretend


def test_the_installed_set_is_whole_and_everything_can_run():
    printed = run('-m', 'revcol_mm.check_env')
    assert re.search(r'OpenMMLab set: (upstream|onedl)\n', printed)
    for task in ('segmentation', 'detection', 'classification'):
        assert re.search(rf'{task} +can run', printed)
    assert 'To mend' not in printed and 'Warning' not in printed


@pytest.mark.parametrize(
    'file, packages', [('requirements.txt', check_env.UPSTREAM), ('requirements-onedl.txt', check_env.ONEDL)]
)
def test_the_pins_are_those_of_the_requirements(file, packages):
    pins = re.findall(r'^([\w-]+)==([\w.]+)', (REPO / file).read_text(), re.M)
    assert set(packages.values()) <= set(pins)
    assert ('torch', check_env.TORCH[1]) in pins or file == 'requirements-onedl.txt'


def test_the_oldest_versions_are_those_that_the_tests_run_on():
    assert f'torch=={check_env.TORCH[0]}\n' in (REPO / 'requirements-oldest.txt').read_text()
    makefile = (REPO / 'Makefile').read_text()
    assert f'PYTHON=python{check_env.PYTHON[0]}\n' in makefile
    assert f"python_requires='>={check_env.PYTHON[0]}'" in (REPO / 'setup.py').read_text()


@pytest.mark.parametrize(
    'version, said',
    [
        ('2.5.1+cpu', '2.5.1, older than 2.6.0'),
        ('2.6.0', '2.6.0'),
        ('2.8.0a0+git1', '2.8.0a0'),
        ('2.9.1+cu128', '2.9.1'),
        ('2.10.0', '2.10.0 (tests run on 2.6.0 to 2.9.1)'),
    ],
)
def test_a_torch_is_compared_with_those_that_the_tests_run_on(version, said, monkeypatch):
    monkeypatch.setattr('torch.__version__', version)
    part = check_env.examine('torch')
    assert part.state == said and bool(part.fix) == ('older' in said)


@pytest.mark.parametrize(
    'version, tested', [('3.9.1', False), ('3.10.0', True), ('3.12.11', True), ('3.13.0', False)]
)
def test_a_python_is_compared_with_those_that_the_tests_run_on(version, tested):
    assert ('tests run on' in check_env._tested(version, *check_env.PYTHON)) == (not tested)


@pytest.mark.parametrize(
    'versions, expected',
    [
        ({}, None),
        ({'mmengine': '0.10.7', 'mmcv': '2.1.0'}, 'upstream'),
        ({'onedl_mmengine': '0.10.12'}, 'onedl'),
    ],
)
def test_the_set_is_told_from_the_distributions(distributions, versions, expected):
    distributions(**versions)
    assert check_env.installed_set() == expected


def test_a_mixed_set_is_mended_by_replacing_the_stranger(distributions):
    distributions(onedl_mmengine='0.10.12', mmdet='3.3.0')
    part = check_env.examine('mmdet')
    assert part.fix == 'pip uninstall -y mmdet && pip install onedl-mmdetection==3.5.1'


def test_two_distributions_of_one_name_are_mended_by_keeping_one(distributions):
    distributions(mmengine='0.10.7', mmseg='1', mmsegmentation='1.2.2', onedl_mmsegmentation='1.4.2')
    part = check_env.examine('mmseg')
    assert part.fix == (
        'pip uninstall -y mmsegmentation onedl-mmsegmentation && pip install mmsegmentation==1.2.2'
    )


HIDE = """
import sys
sys.modules[{module!r}] = None
from revcol_mm.check_env import {call}
{call_line}
"""


@pytest.mark.parametrize(
    'module, fix',
    [
        ('torch', 'pip install torch==2.9.1 torchvision'),
        ('mmseg', 'pip install (onedl-)?mmsegmentation==.*'),
        ('ftfy', 'pip install ftfy'),
        ('mmcv._ext', 'pip install --no-build-isolation .*mmcv==.*'),
    ],
)
def test_what_is_missing_is_named_with_the_line_that_mends_it(module, fix):
    code = HIDE.format(module=module, call='main', call_line='sys.exit(main())')
    printed = run('-c', code, expect=1)
    assert re.search(r'segmentation +cannot run', printed)
    assert re.search(rf'\n  .*{fix}\n', printed)


def test_a_tool_fails_with_the_line_that_mends_it():
    code = HIDE.format(module='mmseg', call='require', call_line="require('segmentation')")
    printed = run('-c', code, expect=1)
    assert 'Traceback' not in printed
    assert re.search(r'^Fix: pip install \S*mmsegmentation==', printed, re.M)
