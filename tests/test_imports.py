"""Importing needs torch and MMEngine only, registers everything for every scope, and follows the layers."""

import ast
import subprocess
from importlib import metadata
from shutil import which

import pytest

from .subprocesses import REPO, run

BARE = """
import sys
for name in ('mmcv', 'mmdet', 'mmseg', 'mmpretrain'):
    sys.modules[name] = None  # importing it fails
import torch
from mmengine.registry import MODELS
import revcol_mm
model = MODELS.build(dict(type='RevCol', arch='nano'))
model.init_weights()
optimizer = torch.optim.AdamW(model.parameters())
losses = []
image = torch.rand(1, 3, 64, 64)
for _ in range(3):
    loss = sum((f - 1).square().mean() for f in model(image))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
assert losses[2] < losses[0], losses
"""

SCOPE = """
import importlib
from mmengine.config import ConfigDict
from mmengine.registry import init_default_scope
from mmengine.utils import import_modules_from_strings
import_modules_from_strings(['revcol_mm'])  # as custom_imports does
init_default_scope({scope!r})
registry = importlib.import_module('{scope}.registry')
model = registry.MODELS.build(ConfigDict(type='RevCol', arch='nano', out_indices=(-1,)))
assert type(model).__module__ == 'revcol_mm.models.backbones.revcol'
assert registry.OPTIM_WRAPPER_CONSTRUCTORS.get('LayerDecayOptimWrapperConstructor').__module__ == (
    'revcol_mm.training.layer_decay')
"""

NO_TORCH = """
import sys
sys.modules['torch'] = None
import revcol_mm
revcol_mm.RevCol
"""


def test_backbone_trains_with_torch_and_mmengine_only():
    run('-c', BARE)


@pytest.mark.parametrize('scope', ['mmengine', 'mmdet', 'mmseg', 'mmpretrain'])
def test_revcol_is_found_from_every_scope(scope):
    run('-c', SCOPE.format(scope=scope))


def test_error_without_torch_names_check_env():
    printed = run('-c', NO_TORCH, expect=1)
    assert 'torch' in printed and 'python -m revcol_mm.check_env' in printed.splitlines()[-1]


LAYERS = [
    'panopticapi',
    'mmcv_ops',
    'check_env',
    'any_module',
    'errors',
    'markdown_table',
    'unwrapped',
    'ops',
    'testing',
    'checkpoints',
    'models',
    'evaluation',
    'config',
    'data',
    'preflight',
    'training',
    'visualization',
    'export',
    'apis',
    'analysis',
    'cli',
]


@pytest.mark.parametrize('path', sorted((REPO / 'revcol_mm').rglob('*.py')), ids=lambda p: p.name)
def test_imports_go_one_way(path):
    """A file imports only from its own layer and those before it in LAYERS; ops from no OpenMMLab package."""
    folders = path.relative_to(REPO).parent.parts
    own = path.relative_to(REPO / 'revcol_mm').parts[0].removesuffix('.py')
    if own == '__init__':
        return
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            package = folders[: len(folders) - node.level + 1] if node.level else ()
            modules = ['.'.join([*package, *filter(None, [node.module])])]
        else:
            continue
        for module in modules:
            parts = module.split('.')
            if parts[0] == 'revcol_mm' and len(parts) > 1:
                imported = parts[1]
                assert LAYERS.index(imported) <= LAYERS.index(own), f'{path} imports {module}'
            if own == 'ops':
                assert not parts[0].startswith('mm'), f'{path} imports {module}'


def test_package_has_no_dependencies_without_extras():
    """pip must not replace the user's torch and OpenMMLab packages."""
    assert all('extra ==' in wanted for wanted in metadata.requires('revcol_mm'))


@pytest.mark.skipif(which('git') is None, reason='needs git')
def test_git_ignores_no_source_file():
    files = map(str, (REPO / 'revcol_mm').rglob('*.py'))
    ignored = subprocess.run(['git', 'check-ignore', *files], cwd=REPO, capture_output=True, text=True)
    assert not ignored.stdout
