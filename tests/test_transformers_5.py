"""MMPretrain and MMDetection where transformers 5 is installed."""

import os

import pytest

from .subprocesses import REPO, run

IMPORTS = 'import revcol_mm, mmpretrain.models, mmdet.models, mmpretrain.datasets'


@pytest.fixture
def path(tmp_path):
    """Where Python finds a transformers 5, as far as MMPretrain looks at it."""
    (tmp_path / 'transformers').mkdir()
    code = 'def __getattr__(name):\n    return type(name, (), {})\n'
    (tmp_path / 'transformers/__init__.py').write_text(code)
    info = tmp_path / 'transformers-5.24.0.dist-info'
    info.mkdir()
    (info / 'METADATA').write_text('Metadata-Version: 2.1\nName: transformers\nVersion: 5.24.0\n')
    return os.pathsep.join([str(tmp_path), str(REPO)])


def test_it_is_there_and_everything_can_be_imported(path):
    said = run('-c', f'{IMPORTS}; import transformers; print(transformers.__file__)', PYTHONPATH=path)
    assert str(path.split(os.pathsep)[0]) in said


def test_without_us_mmpretrain_cannot_be_imported(path):
    """Once it can, revcol_mm/transformers_5.py may go."""
    said = run('-c', 'import mmcv, mmpretrain.models.multimodal', expect=1, PYTHONPATH=path)
    assert 'NoneType' in said
