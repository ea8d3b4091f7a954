"""check_env reports what is installed, and the command that installs what is missing."""

import importlib
import inspect
import re
import sys
from importlib import metadata
from pathlib import Path

import mmcv.ops
import pytest
import yaml
from mmengine.registry import MODELS

from revcol_mm import check_env
from revcol_mm.mmcv_ops import sort_ops

from .subprocesses import REPO, run


@pytest.fixture
def distributions(monkeypatch):
    """A function that pretends that only certain distributions are installed."""

    def pretend(**versions):
        versions = {name.replace('_', '-'): version for name, version in versions.items()}

        def version(name):
            if name not in versions:
                raise metadata.PackageNotFoundError(name)
            return versions[name]

        monkeypatch.setattr(check_env.metadata, 'version', version)

    return pretend


def test_environment_of_the_tests_is_complete():
    printed = run('-m', 'revcol_mm.check_env')
    assert re.search(r'OpenMMLab set: (upstream|onedl)\n', printed)
    for task in ('segmentation', 'detection', 'classification'):
        assert re.search(rf'{task} +can run', printed)
    assert 'pip install' not in printed and 'Warning' not in printed


@pytest.mark.parametrize(
    'file, packages', [('requirements.txt', check_env.UPSTREAM), ('requirements-onedl.txt', check_env.ONEDL)]
)
def test_versions_are_pinned_in_the_requirements(file, packages):
    pins = re.findall(r'^([\w-]+)==([\w.]+)', (REPO / file).read_text(), re.M)
    assert set(packages.values()) <= set(pins)
    assert ('torch', check_env.TORCH[1]) in pins


def test_oldest_versions_are_those_of_the_oldest_test_environment():
    assert f'torch=={check_env.TORCH[0]}\n' in (REPO / 'requirements-oldest.txt').read_text()
    makefile = (REPO / 'Makefile').read_text()
    assert f'PYTHON=python{check_env.PYTHON[0]}\n' in makefile
    assert re.search(r'with Python {}[\d., ]* or {} '.format(*map(re.escape, check_env.PYTHON)), makefile)
    assert f'requires-python = ">={check_env.PYTHON[0]}"' in (REPO / 'pyproject.toml').read_text()


def test_workflow_tests_every_set_of_packages_and_every_python_version():
    jobs = yaml.safe_load((REPO / '.github/workflows/tests.yml').read_text())['jobs']
    makefile = (REPO / 'Makefile').read_text()
    matrix = jobs['packages']['strategy']['matrix']['include']
    targets = re.findall(r'^(test(?:-onedl|-oldest|-compiled)?):', makefile, re.M)
    assert {each['target'] for each in matrix} == set(targets) and len(set(targets)) == 4
    assert jobs['packages']['steps'][-1]['run'] == 'make ${{ matrix.target }} PYTHON=python'
    (python,) = [step['with']['python-version'] for step in jobs['everything']['steps'] if 'with' in step]
    (tested,) = re.findall('with Python ([^ ]+, [^ ]+ or [^ ]+) ', makefile)
    assert {python, *(each['python'] for each in matrix)} == set(re.findall(r'3\.\d+', tested))


@pytest.mark.parametrize(
    'version, state',
    [
        ('2.5.1+cpu', '2.5.1, in which checkpoints can run code'),
        ('2.9.1', r'2.9.1 \(tests run on .*\), .*; CVE-2026-24747: .*'),
        ('2.10.0', '2.10.0, .*, no GPU'),
        ('2.11.0a0+git1', '2.11.0a0, .*, no GPU'),
        ('2.14.1+cu130', '2.14.1, .*, no GPU'),
        ('2.15.0', '2.15.0 \\(tests run on 2.10.0 to 2.14.1\\), .*, no GPU'),
    ],
)
def test_torch_version_is_compared_with_tested_ones(version, state, monkeypatch):
    monkeypatch.setattr('torch.__version__', version)
    monkeypatch.setattr('torch.cuda.device_count', lambda: 0)
    part = check_env.examine('torch')
    assert re.fullmatch(state, part.state) and bool(part.fix) == (version == '2.5.1+cpu')


def test_gpu_is_named(monkeypatch):
    monkeypatch.setattr('torch.version.cuda', '13.0')
    monkeypatch.setattr('torch.cuda.device_count', lambda: 1)
    monkeypatch.setattr('torch.cuda.get_device_name', lambda index: 'NVIDIA H100')
    assert check_env.examine('torch').state.endswith('CUDA 13.0, NVIDIA H100')


@pytest.mark.parametrize(
    'version, tested', [('3.9.1', False), ('3.10.0', True), ('3.13.1', True), ('3.14.0', False)]
)
def test_python_version_is_compared_with_tested_ones(version, tested):
    assert ('tests run on' in check_env._tested(version, *check_env.PYTHON)) == (not tested)


@pytest.mark.parametrize(
    'versions, expected',
    [
        ({}, None),
        ({'mmengine': '0.10.7', 'mmcv': '2.1.0'}, 'upstream'),
        ({'mmcv_lite': '2.1.0'}, 'upstream'),
        ({'onedl_mmengine': '0.10.12'}, 'onedl'),
    ],
)
def test_set_is_recognised_by_its_distributions(distributions, versions, expected):
    distributions(**versions)
    assert check_env.installed_set() == expected


def test_fix_for_a_mixed_set_replaces_the_other_package(distributions):
    distributions(onedl_mmengine='0.10.12', mmdet='3.3.0')
    part = check_env.examine('mmdet')
    assert part.fix == 'pip uninstall -y mmdet && pip install onedl-mmdetection==3.5.1'


def test_fix_for_two_distributions_of_a_package_keeps_one(distributions):
    distributions(mmengine='0.10.7', mmseg='1', mmsegmentation='1.2.2', onedl_mmsegmentation='1.4.2')
    part = check_env.examine('mmseg')
    assert part.fix == (
        'pip uninstall -y mmsegmentation onedl-mmsegmentation && pip install mmsegmentation==1.2.2'
    )


@pytest.mark.parametrize('fault', ['two', 'broken', 'no CUDA'])
def test_fix_for_broken_compiled_ops_is_mmcv_lite(fault, distributions, monkeypatch):
    distributions(mmengine='0.10.7', mmcv='2.1.0', **({'mmcv_lite': '2.1.0'} if fault == 'two' else {}))
    if fault == 'broken':
        monkeypatch.setitem(sys.modules, 'mmcv.ops', None)
    else:
        monkeypatch.setattr('mmcv.ops.get_compiling_cuda_version', lambda: 'not available')
        monkeypatch.setattr('torch.cuda.is_available', lambda: True)
    fix = check_env.examine('mmcv.ops').fix
    assert re.fullmatch('pip uninstall -y (mmcv-lite )?mmcv && pip install mmcv-lite==2.1.0', fix)


@pytest.mark.skipif(sort_ops() is None, reason='compiled ops')
@pytest.mark.skipif(check_env.installed_set() == 'onedl', reason='onedl-mmcv has one more op')
def test_ops_are_listed_as_in_the_documentation():
    printed = ' '.join(run('-m', 'revcol_mm.check_env').split())
    page = ' '.join((REPO / 'docs/environment.md').read_text().replace('`', '').split())
    supplied, missing = sort_ops()
    assert f'{", ".join(supplied)} {len(missing)} are missing' in printed
    for names in (supplied, missing):
        assert f'{", ".join(names)}.' in page


@pytest.mark.skipif(sort_ops() is None, reason='compiled ops')
@pytest.mark.parametrize('package', ['mmdet', 'mmseg', 'mmpretrain'])
def test_every_op_that_openmmlab_imports_is_supplied(package):
    (folder,) = importlib.util.find_spec(package).submodule_search_locations
    sources = '\n'.join(path.read_text(encoding='utf-8') for path in Path(folder).rglob('*.py'))
    imports = re.findall(r'from (mmcv\.ops[\w.]*) import ([\w, ]+|\([\w,\s]+\))', sources)
    ops = [
        getattr(importlib.import_module(module), name)
        for module, names in imports
        for name in re.findall(r'\w+', re.sub(r' as \w+', '', names))
    ]
    types = set(re.findall(r"type='(\w+)'", sources))  # layers that are named in configs
    ops += [getattr(mmcv.ops, name) for name in types & {*mmcv.ops.__all__}]
    ops += [MODELS.get(name) for name in types & {'DCN', 'DCNv2', 'SAC', 'carafe'}]
    assert len(ops) > 5 or package == 'mmpretrain'
    for op in ops:
        owner = getattr(op, '__self__', op)  # some are methods of an autograd.Function
        module = sys.modules[owner.__module__]
        functions = set(re.findall(r'ext_module\.(\w+)', inspect.getsource(module)))
        missing = functions - set(mmcv._ext.SUPPLIED)
        # line_nms_forward is for CLRNet, in onedl only.
        assert missing <= {'nms_rotated', 'nms_quadri', 'line_nms_forward'}, op


HIDE = """
import sys
sys.modules[{module!r}] = None
from revcol_mm.check_env import {call}
{call_line}
"""


@pytest.mark.parametrize(
    'module, fix',
    [
        ('torch', 'pip install torch==2.14.1 torchvision'),
        ('torchvision', r'pip install --force-reinstall torch==\S+ torchvision'),
        ('mmseg', 'pip install (onedl-)?mmsegmentation==.*'),
        ('ftfy', 'pip install ftfy'),
        ('mmcv._ext', 'pip (un)?install .*mmcv.*'),
    ],
)
def test_missing_package_is_reported_with_a_fix(module, fix):
    code = HIDE.format(module=module, call='main', call_line='sys.exit(main())')
    printed = run('-c', code, expect=1)
    assert re.search(r'segmentation +cannot run', printed)
    assert re.search(rf'\n  .*{fix}\n', printed)


def test_tool_ends_with_the_fix_for_a_missing_package():
    code = HIDE.format(module='mmseg', call='require', call_line="require('segmentation')")
    printed = run('-c', code, expect=1)
    assert 'Traceback' not in printed
    assert re.search(r'^Fix: pip install \S*mmsegmentation==', printed, re.M)


def test_missing_dependency_of_a_package_has_its_name_on_pypi(monkeypatch):
    def lacking(name):
        raise ModuleNotFoundError("No module named 'modelindex'", name='modelindex.load_model_index')

    monkeypatch.setattr(check_env.importlib, 'import_module', lacking)
    part = check_env.examine('mmpretrain')
    assert (part.state, part.fix) == ('without modelindex, which it imports', 'pip install model-index')
