"""Errors that users can fix are one line; bugs keep their traceback, on the terminal and in the log file."""

import ast
import logging
import runpy
import sys
import traceback

import pytest
from mmengine.logging import MMLogger

from revcol_mm.errors import errors_in_one_line

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
from revcol_mm.errors import CheckpointError, PreflightError, building, errors_in_one_line
from revcol_mm.training.seeded_dataset import BrokenSampleError, SeededDataset
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
def run_program(tmp_path, monkeypatch, capsys):
    """A function that runs a program with a call; returns its error message and what it printed before."""
    (tmp_path / 'users_module.py').write_text(USERS_MODULE)
    monkeypatch.syspath_prepend(tmp_path)

    def run(call):
        (tmp_path / 'program.py').write_text(PROGRAM.format(call=call))
        with pytest.raises(SystemExit) as exit:
            runpy.run_path(str(tmp_path / 'program.py'), run_name='__main__')
        # Lets go of the data loader, whose workers then end: the garbage collector would wait for them.
        traceback.clear_frames(exit.value.__context__.__traceback__)
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


WRONG_ARGUMENT = 'build(type=users_module.Model, siez=3)'
BUG_IN_MODEL = 'build(type=users_module.Model, size=3)'


@pytest.mark.parametrize(
    'call, reason',
    [
        pytest.param("fail(PreflightError('take another'))", 'take another', id='PreflightError'),
        pytest.param("fail(CheckpointError('take another'))", 'take another', id='CheckpointError'),
        pytest.param("fail(ValueError('take another'))", 'take another', id='ValueError of the program'),
        pytest.param("open('no_such_file')", "'no_such_file'", id='missing file'),
        pytest.param(WRONG_ARGUMENT, "argument 'siez'", id='argument of a user class'),
        pytest.param("build(type='Modell')", 'Modell is not in', id='class'),
        pytest.param("build(type='RevCol', arch='giant')", "or a dict, got 'giant'", id='value'),
        pytest.param("build(type='RevCol', archh='nano')", "argument 'archh'", id='argument'),
    ],
)
def test_error_that_users_can_fix_is_one_line(call, reason, run_program):
    message, printed = run_program(call)
    assert reason in message and printed == ''


@pytest.mark.parametrize(
    'call, reason',
    [
        pytest.param(BUG_IN_MODEL, 'has no len() (users_module.py:7)', id='model'),
        pytest.param('load(num_workers=0)', '(users_module.py:15)', id='data'),
        pytest.param('load(num_workers=1)', '(users_module.py:15)', id='data in a worker process'),
    ],
)
def test_bug_in_user_code_keeps_its_traceback(call, reason, run_program):
    message, printed = run_program(call)
    assert reason in message
    assert 'users_module.py", line' in printed and 'a bug' in printed


def test_error_of_another_package_keeps_its_traceback(run_program):
    message, printed = run_program("__import__('json').loads('{')")
    assert 'Expecting property name' in message and 'Traceback' in printed


@pytest.mark.parametrize('call', [WRONG_ARGUMENT, BUG_IN_MODEL])
def test_log_file_has_every_traceback(call, run_program, log_file):
    run_program(call)
    text = log_file.read_text()
    assert 'Traceback' in text and 'build_functions.py' in text


@pytest.mark.parametrize(
    'error', [KeyboardInterrupt(), SystemExit(75), RuntimeError(), TypeError()], ids=repr
)
def test_other_errors_pass_unchanged(error, log_file):
    with pytest.raises(type(error)) as raised, errors_in_one_line():
        raise error
    assert raised.value is error
    assert ('Traceback' in log_file.read_text()) == isinstance(error, Exception)


@pytest.mark.parametrize('tool', sorted((REPO / 'tools').rglob('*.py')), ids=lambda path: path.stem)
def test_tools_leave_error_messages_to_errors_in_one_line(tool):
    for node in ast.walk(ast.parse(tool.read_text())):
        if isinstance(node, ast.ExceptHandler):
            assert 'sys.exit' not in ast.unparse(node)
