"""What a user can mend is told in one line; of a bug the traceback stands above it, and in the log."""

import ast
import logging
import runpy
import sys

import pytest
from mmengine.logging import MMLogger

from .subprocesses import REPO

USERS_MODULE = """
from torch.utils.data import Dataset


class Model:
    def __init__(self, size=1):
        self.size = len(size)  # a bug, if size is a number


class Data(Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        return index + None  # a bug
"""

PROGRAM = """
from mmengine.registry import MODELS
from torch.utils.data import DataLoader
from revcol_mm.training.seeded_dataset import BrokenSampleError, SeededDataset
from revcol_mm.models.checkpoint import CheckpointError
from revcol_mm.preflight import PreflightError, building, errors_in_one_line
import users_module


def build(**cfg):
    with building('the model'):
        MODELS.build(cfg)


def load(num_workers):
    next(iter(DataLoader(SeededDataset(users_module.Data()), num_workers=num_workers)))


def fail(error):
    raise error


with errors_in_one_line(BrokenSampleError):
    {call}
"""


@pytest.fixture
def ends(tmp_path, monkeypatch, capsys):
    """Runs a program as a tool is run; returns the line that it ends with, and what it has printed before."""
    (tmp_path / 'users_module.py').write_text(USERS_MODULE)
    monkeypatch.syspath_prepend(tmp_path)

    def run(call):
        (tmp_path / 'program.py').write_text(PROGRAM.format(call=call))
        with pytest.raises(SystemExit) as exit:
            runpy.run_path(str(tmp_path / 'program.py'), run_name='__main__')
        assert exit.value.code.startswith('error: ') and '\n' not in exit.value.code
        return exit.value.code, capsys.readouterr().err

    yield run
    sys.modules.pop('users_module', None)


@pytest.fixture
def log_file(tmp_path):
    logger = MMLogger.get_current_instance()
    handler = logging.FileHandler(tmp_path / 'a.log')
    logger.addHandler(handler)
    yield tmp_path / 'a.log'
    logger.removeHandler(handler)


WRONG = [
    pytest.param("fail(PreflightError('take another'))", 'take another', id='preflight'),
    pytest.param("fail(CheckpointError('take another'))", 'take another', id='checkpoint'),
    pytest.param("fail(ValueError('take another'))", 'take another', id="the tool's own"),
    pytest.param("open('no_such_file')", "'no_such_file'", id='missing file'),
    pytest.param('build(type=users_module.Model, siez=3)', "argument 'siez'", id='argument of a class'),
    pytest.param("build(type='Modell')", 'Modell is not in', id='class'),
    pytest.param("build(type='RevCol', arch='giant')", "got 'giant'", id='value'),
    pytest.param("build(type='RevCol', archh='nano')", "argument 'archh'", id='argument'),
]
BUGS = [
    pytest.param('build(type=users_module.Model, size=3)', 'has no len() (users_module.py:7)', id='model'),
    pytest.param('load(num_workers=0)', '(users_module.py:15)', id='data'),
    pytest.param('load(num_workers=1)', '(users_module.py:15)', id="a worker's data"),
]


@pytest.mark.parametrize('call, reason', WRONG)
def test_what_a_user_can_mend_is_one_line(call, reason, ends):
    line, before = ends(call)
    assert reason in line and before == ''


@pytest.mark.parametrize('call, reason', BUGS)
def test_a_bug_in_a_user_s_code_keeps_its_traceback(call, reason, ends):
    line, before = ends(call)
    assert reason in line
    assert 'users_module.py", line' in before and 'a bug' in before


def test_an_error_of_another_package_that_names_no_file_keeps_its_traceback(ends):
    line, before = ends("__import__('json').loads('{')")
    assert 'Expecting property name' in line and 'Traceback' in before


@pytest.mark.parametrize('call', [WRONG[4].values[0], BUGS[0].values[0]])
def test_every_traceback_is_in_the_log_file(call, ends, log_file):
    ends(call)
    text = log_file.read_text()
    assert 'Traceback' in text and 'build_functions.py' in text


@pytest.mark.parametrize('error', ['KeyboardInterrupt', 'SystemExit(75)', 'RuntimeError', 'TypeError'])
def test_other_errors_are_as_they_are(error, tmp_path, log_file):
    (tmp_path / 'program.py').write_text(
        f'from revcol_mm.preflight import errors_in_one_line\nwith errors_in_one_line():\n    raise {error}'
    )
    with pytest.raises((KeyboardInterrupt, SystemExit, RuntimeError, TypeError)) as raised:
        runpy.run_path(str(tmp_path / 'program.py'), run_name='__main__')
    assert type(raised.value).__name__ == error.partition('(')[0]
    assert getattr(raised.value, 'code', 75) == 75
    assert ('Traceback' in log_file.read_text()) == issubclass(raised.type, Exception)


@pytest.mark.parametrize('tool', sorted((REPO / 'tools').rglob('*.py')), ids=lambda path: path.stem)
def test_no_tool_makes_a_line_of_an_error_by_itself(tool):
    for node in ast.walk(ast.parse(tool.read_text())):
        if isinstance(node, ast.ExceptHandler):
            assert 'sys.exit' not in ast.unparse(node)
