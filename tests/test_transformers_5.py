"""MMPretrain and MMDetection can be imported beside transformers 5."""

import os
from pathlib import Path

import pytest

from .subprocesses import REPO, run

IMPORTS = 'import revcol_mm, mmpretrain.models, mmdet.models, mmpretrain.datasets'


@pytest.fixture
def path(tmp_path):
    """PYTHONPATH with a stub of transformers 5, as far as MMPretrain imports it."""
    top = (
        'class Stub:\n    from_pretrained = from_config = None\n'
        'def __getattr__(name):\n    return type(name, (Stub,), {})\n'
    )
    below = 'from transformers import Stub\ndef __getattr__(name):\n    return Stub\n'
    for package in ('', 'models', 'models/auto', 'models/auto/auto_factory'):  # without modeling_utils
        folder = tmp_path / 'transformers' / package
        folder.mkdir()
        (folder / '__init__.py').write_text(below if package else top)
    info = tmp_path / 'transformers-5.24.0.dist-info'
    info.mkdir()
    (info / 'METADATA').write_text('Metadata-Version: 2.1\nName: transformers\nVersion: 5.24.0\n')
    return os.pathsep.join([str(tmp_path), str(REPO)])


def test_mmpretrain_and_mmdet_can_be_imported(path):
    said = run('-c', f'{IMPORTS}; import transformers; print(transformers.__file__)', PYTHONPATH=path)
    assert str(path.split(os.pathsep)[0]) in said


def test_check_env_reports_a_broken_mmpretrain(path):
    broken = Path(path.split(os.pathsep)[0], 'mmpretrain')
    broken.mkdir()
    (broken / '__init__.py').write_text("raise AssertionError('MMCV==3 is used but incompatible')\n")
    said = run('-m', 'revcol_mm.check_env', expect=1, PYTHONPATH=path)
    assert 'broken: MMCV==3 is used but incompatible' in said


def test_mmpretrain_alone_cannot_be_imported(path):
    """Fails once MMPretrain supports transformers 5, and revcol_mm/transformers_5.py can be removed."""
    said = run('-c', 'import mmcv, mmpretrain.models.multimodal', expect=1, PYTHONPATH=path)
    assert 'NoneType' in said
