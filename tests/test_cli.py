"""The command `revcol`, and the package installed from a wheel."""

import os
import shutil
import subprocess
import sys

import pytest

import revcol_mm
from revcol_mm.cli import COMMANDS, main
from revcol_mm.config.find import config_folder, find_config, get_config

from .subprocesses import REPO

TOOLS = {  # the files in tools/ that call commands
    'train': 'train',
    'test': 'test',
    'demo': 'predict',
    'export': 'export',
    'publish_model': 'publish',
    'convert_checkpoint': 'convert',
    'check_data': 'check-data',
}


@pytest.fixture
def revcol(monkeypatch, capsys):
    """Run the command in this process: (*arguments) -> (exit status, output)."""

    def run(*arguments):
        monkeypatch.setattr(sys, 'argv', ['revcol', *map(str, arguments)])
        status = 0
        try:
            main()
        except SystemExit as exit:
            status = exit.code or 0
        captured = capsys.readouterr()
        return status, captured.out + captured.err

    return run


def test_every_command_has_a_description_and_help(revcol):
    status, said = revcol('--help')
    assert status == 0 and all(f'\n{name:12} {what}\n' in said for name, (_, what) in COMMANDS.items())
    for command in COMMANDS:
        status, said = revcol(command, '--help')
        assert status == 0 and f'usage: revcol {command}' in said


@pytest.mark.parametrize('arguments', [[], ['fly'], ['doctor', 'nobody'], ['train']])
def test_wrong_command_is_an_error(arguments, revcol):
    status, said = revcol(*arguments)
    assert status == 2 and 'usage: revcol' in said


def test_tools_only_call_the_commands():
    assert {*TOOLS.values()} == COMMANDS.keys() - {'configs', 'doctor'}
    for tool, command in TOOLS.items():
        _, _, *code = (REPO / f'tools/{tool}.py').read_text().splitlines()
        line = f'from {COMMANDS[command][0]} import main'
        assert code == [line, '', "if __name__ == '__main__':", '    main()']


def test_configs_are_found_by_name(revcol, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, said = revcol('configs')
    assert status == 0 and 'dino_revcol_t_coco' in said.split()
    assert set(said.split()) == {path.stem for path in (REPO / 'configs').glob('*.py')}
    _, path = revcol('configs', 'dino_revcol_t_coco')
    assert path.strip() == str(config_folder() / 'dino_revcol_t_coco.py')
    assert find_config('baselines/upernet_resnet_camvid').parent.name == 'baselines'
    assert revcol_mm.get_config is get_config
    assert get_config('dino_revcol_t_coco').model.type == 'DINO'
    (tmp_path / 'dino_revcol_t_coco.py').write_text('model = 1')
    assert get_config('dino_revcol_t_coco.py').model == 1  # files are preferred


def test_unknown_config_suggests_similar_names(revcol):
    status, said = revcol('test', 'dino_revcol_t_cocoo', REPO / 'README.md')
    assert 'no config dino_revcol_t_cocoo; there is dino_revcol_t_coco' in f'{status}{said}'


@pytest.mark.slow
def test_wheel_works_outside_of_the_repository(tmp_path):
    source = tmp_path / 'source'  # since pip leaves build files in the source folder
    for name in ('revcol_mm', 'configs', 'tools'):
        shutil.copytree(REPO / name, source / name, ignore=shutil.ignore_patterns('__pycache__'))
    for name in ('pyproject.toml', 'setup.py', 'README.md', 'LICENSE', 'model-index.yml'):
        shutil.copy(REPO / name, source)
    pip = (sys.executable, '-m', 'pip', '-q', '--disable-pip-version-check')
    build = ('wheel', '--no-deps', '--no-build-isolation', '--wheel-dir', tmp_path, source)
    subprocess.run([*pip, *map(str, build)], check=True, cwd=tmp_path)
    (wheel,) = tmp_path.glob('*.whl')
    site = tmp_path / 'site'
    subprocess.run([*pip, 'install', '--no-deps', '--target', str(site), str(wheel)], check=True)
    env = dict(os.environ, PYTHONPATH=str(site), OMP_NUM_THREADS='1')

    def run(*command):
        done = subprocess.run(
            list(map(str, command)), cwd=tmp_path, env=env, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    code = (
        'import revcol_mm; print(revcol_mm.__file__); print(revcol_mm.get_config("revcol_t_in1k").model.type)'
    )
    assert run(sys.executable, '-c', code).splitlines()[-2:] == [
        str(site / 'revcol_mm/__init__.py'),
        'RevColClassifier',
    ]
    assert (site / 'revcol_mm/.mim/model-index.yml').is_file()
    assert (site / 'revcol_mm/.mim/configs/metafiles/dino.yml').is_file()
    names = run(sys.executable, site / 'bin/revcol', 'configs').split()
    assert set(names) == {path.stem for path in (REPO / 'configs').glob('*.py')}
    assert str(site) in run(sys.executable, site / 'bin/revcol', 'configs', names[0])
    tool = site / 'revcol_mm/.mim/tools/train.py'
    assert 'usage: train.py' in run(sys.executable, tool, '--help')
