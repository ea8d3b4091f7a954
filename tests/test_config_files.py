"""Bad config files and command lines are errors in one line, which name the cause."""

import pytest

from revcol_mm.config.command_line import read_config

SEGMENTOR = 'configs/upernet_revcol_nano_sample.py'


@pytest.mark.parametrize(
    'content, message',
    [
        pytest.param('model = dict(', r'bad\.py: .*SyntaxError', id='syntax error'),
        pytest.param('a = 1 / 0', 'ZeroDivisionError', id='failing code'),
        pytest.param("_base_ = ['nowhere.py']", r'FileNotFoundError: .*nowhere\.py', id='missing base'),
        pytest.param("custom_imports = dict(imports=['no_such'])", 'no_such', id='missing import'),
        pytest.param("_base_ = ['bad.py']", 'RecursionError', id='its own base'),
        pytest.param(
            "default_scope = 'mmsegs'\nmodel = dict()", "default_scope is 'mmsegs'", id='scope typo'
        ),
        pytest.param('model = dict()', 'default_scope is None.*mmseg', id='no scope'),
        pytest.param("default_scope = 'mmseg'", 'has no model', id='no model'),
        pytest.param("default_scope = 'mmseg'\nmodel = 'upernet'", 'has no model', id='model is text'),
        pytest.param('\0', 'null bytes', id='binary file'),
    ],
)
def test_bad_config_file_is_an_error(content, message, tmp_path):
    (tmp_path / 'bad.py').write_text(content)
    with pytest.raises(ValueError, match=message):
        read_config(tmp_path / 'bad.py')


def test_config_file_with_another_suffix_is_an_error(tmp_path):
    (tmp_path / 'bad.txt').write_text('model')
    with pytest.raises(ValueError, match='py/yml/yaml/json'):
        read_config(tmp_path / 'bad.txt')


@pytest.mark.parametrize(
    'tool, arguments, message',
    [
        pytest.param(
            'train', [SEGMENTOR, '--seed', -1], '--seed must be from 0 to 4294967295', id='negative seed'
        ),
        pytest.param(
            'train',
            [SEGMENTOR, '--seed', 2**40],
            '--seed must be from 0 to 4294967295',
            id='seed over 32 bits',
        ),
        pytest.param('train', [SEGMENTOR, '--resume', 'no.pth'], 'no checkpoint no.pth', id='missing file'),
        pytest.param(
            'train',
            [SEGMENTOR, '--cfg-options', 'train_cfg.max_iter=3'],
            "--cfg-options train_cfg.max_iter: train_cfg has no 'max_iter'",
            id='option typo',
        ),
        pytest.param('check_data', ['nowhere.py'], 'no config nowhere.py', id='missing config'),
        pytest.param(
            'check_data', [SEGMENTOR, '--workers', 0], '--workers must be at least 1, got 0', id='no workers'
        ),
        pytest.param('test', ['configs', 'no.pth'], 'no checkpoint no.pth', id='missing checkpoint'),
        pytest.param('test', ['configs', 'README.md'], 'no config configs', id='folder as config'),
        pytest.param(
            'convert_checkpoint', ['README.md', 'a.pth'], 'cannot read README.md', id='text as checkpoint'
        ),
        pytest.param('publish_model', ['README.md', 'a.pth'], 'cannot read README.md', id='text to publish'),
        pytest.param(
            'publish_model', ['configs', 'a.pth'], 'no checkpoint configs', id='folder as checkpoint'
        ),
    ],
)
def test_bad_command_line_is_an_error_in_one_line(tool, arguments, message, call_tool):
    _, error = call_tool(f'tools/{tool}.py', *arguments)
    assert error.startswith('error: ') and message in error and '\n' not in error
