"""Finding trained models below a folder, without running code of their configs."""

import pytest
from mmengine.config import Config

from revcol_mm.apis.trained_models import find_trained_models

from .subprocesses import REPO


@pytest.fixture(scope='module')
def recorded():
    """A config as MMEngine records it in a work dir."""
    cfg = Config.fromfile(REPO / 'configs/upernet_revcol_nano_sample.py', format_python_code=False)
    return cfg.pretty_text


@pytest.fixture
def trained(recorded, tmp_path):
    """Write a work dir with config, checkpoint and last_checkpoint; replace a part of the config."""

    def write(name, replace=('', '')):
        folder = tmp_path / 'work_dirs' / name
        folder.mkdir(parents=True)
        assert replace[0] in recorded
        (folder / 'config.py').write_text(recorded.replace(*replace, 1))
        (folder / 'iter_3.pth').touch()
        (folder / 'last_checkpoint').write_text(str(folder / 'iter_3.pth'))
        return folder

    return write


@pytest.fixture
def find(tmp_path):
    """Return the found models, and the reason why each other work dir was skipped."""

    def call():
        skipped = {}
        models = find_trained_models(
            tmp_path / 'work_dirs', lambda path, why: skipped.update({path.name: why})
        )
        return models, skipped

    return call


def test_models_are_found_in_subfolders(trained, find):
    folders = [trained('a'), trained('b/c')]
    assert find() == ([(str(folder / 'config.py'), str(folder / 'iter_3.pth')) for folder in folders], {})


def test_config_that_would_need_code_is_skipped(trained, find, trap):
    good = trained('good')
    trained('bad', ("default_scope = 'mmseg'", f'a = {trap.code}'))
    ((model,), skipped) = find()
    assert model.config == str(good / 'config.py')
    assert skipped.keys() == {'bad'} and 'is no literal' in skipped['bad'] and '--models' in skipped['bad']
    assert not trap.has_run()


@pytest.mark.parametrize('kind', ['outside', 'above', 'link'])
def test_checkpoint_outside_of_the_folder_is_skipped(kind, trained, find, tmp_path):
    folder, secret = trained('bad'), tmp_path / 'secret.pth'
    secret.write_text('secret')
    if kind == 'link':
        (folder / 'iter_3.pth').unlink()
        (folder / 'iter_3.pth').symlink_to(secret)
    else:
        path = secret if kind == 'outside' else f'{tmp_path}/work_dirs/../secret.pth'
        (folder / 'last_checkpoint').write_text(str(path))
    models, skipped = find()
    assert not models and 'is not in' in skipped['bad'] and '--models' in skipped['bad']


def test_incomplete_work_dirs_are_skipped(trained, find):
    (trained('gone') / 'iter_3.pth').unlink()
    (trained('two') / 'other.py').touch()
    (trained('empty') / 'config.py').write_text('')
    (trained('binary') / 'last_checkpoint').write_bytes(b'\xff\0')
    folder = trained('folder')
    (folder / 'last_checkpoint').unlink()
    (folder / 'last_checkpoint').mkdir()
    models, skipped = find()
    assert not models and skipped.keys() == {'gone', 'two', 'empty', 'binary', 'folder'}
    assert 'no checkpoint' in skipped['gone']
    assert '2 configs beside' in skipped['two'] and '--models' in skipped['two']
    assert 'default_scope is None' in skipped['empty']
    assert not any('\n' in reason for reason in skipped.values())
