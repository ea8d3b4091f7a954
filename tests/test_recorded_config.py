"""Recorded configs are read unchanged, without running code; those that could run code are refused."""

import contextlib
import copy
import math
import pickle

import pytest
import torch
from mmengine.config import Config, ConfigDict
from mmengine.registry import MODELS, TRANSFORMS, DefaultScope

from revcol_mm.config.command_line import read_config
from revcol_mm.config.recorded import MAX_BYTES, read_recorded_config, read_recorded_model, read_run_config
from revcol_mm.errors import PreflightError

from .subprocesses import REPO

SEGMENTOR = REPO / 'configs/upernet_revcol_nano_sample.py'
CONFIGS = sorted(
    path for path in (REPO / 'configs').rglob('*.py') if path.parent.name in ('configs', 'baselines')
)


@pytest.fixture
def written(tmp_path):
    """A function that writes text to a config file and reads it."""

    def read(text):
        (tmp_path / 'config.py').write_bytes(text if isinstance(text, bytes) else text.encode())
        return read_recorded_config(tmp_path / 'config.py')

    return read


@pytest.fixture
def dumped(tmp_path):
    """A function that dumps a config as a run does, and returns the path."""

    def dump(cfg):
        cfg.dump(tmp_path / 'config.py')
        return tmp_path / 'config.py'

    return dump


@pytest.fixture
def evil_module(tmp_path, monkeypatch, trap):
    """A module `evil` that Python finds, with code that must not run."""
    (tmp_path / 'evil.py').write_text(trap.code)
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_dumped_config_is_read_unchanged(path, dumped):
    is_formatted = path.stem.endswith('_sample')  # only some, because formatting takes seconds
    cfg = Config.fromfile(path, format_python_code=is_formatted, import_custom_modules=False)
    path = dumped(cfg)
    read = read_recorded_config(path)
    assert read.to_dict() == cfg.to_dict()
    assert isinstance(read.model, ConfigDict) and read.filename == str(path)
    assert read.text == path.read_text()


def test_values_of_all_types_are_read_unchanged(dumped):
    values = dict(
        none=None,
        yes=True,
        whole=-3,
        small=-1e-05,
        words='it\'s "a"\nb\\ü',
        long='word ' * 60,
        empty=[(), [], {}, ''],
        one=(1,),
        nested=[dict(a=[(1, -2.5), dict(b={'not-a-name': dict(c=1), 3: None})])],
        numbers={0: 'a', 1: 'b'},
        members={1, 2},
        infinite=[math.inf, -math.inf],
    )
    read = read_recorded_config(dumped(Config(values)))
    assert read.to_dict() == values and isinstance(read.one, tuple)


def test_joined_strings_and_calls_of_float_and_dict_are_read(written):
    cfg = written("a = 'x' 'y'\nb = [float('-inf'), nan]\nc = dict({'d': 1}, e=2)")
    assert cfg.a == 'xy' and cfg.c == dict(d=1, e=2)
    assert cfg.b[0] == -math.inf and math.isnan(cfg.b[1])


@pytest.mark.parametrize(
    'expression',
    [
        'CODE',
        '__import__("os").system("touch FILE")',
        'dict(a=[1, (2, dict(b=CODE))])',
        '[CODE for _ in (1,)]',
        '(lambda: CODE)()',
        'f"""{CODE}"""',
        '{1: 2, **dict(a=CODE)}',
        'dict(**dict(a=CODE))',
        'dict.fromkeys(CODE)',
        'dict([("a", CODE)])',
        'float(CODE and "1")',
        '1 if CODE else 2',
        '1 + 1',
        "'a' * 10**10",
        '9**9**9',
        '--1',
        'not 1',
        '-"a"',
        '{[]: 1}',
        'float("1e9")',
        'print',
        '"a".upper',
        '[*(1, 2)]',
        '(b := 1)',
        '...',
    ],
)
def test_expression_is_refused_with_its_line_and_does_not_run(expression, written, tmp_path, trap):
    expression = expression.replace('CODE', trap.code).replace('FILE', str(trap.file))
    with pytest.raises(PreflightError) as error:
        written(f'good = 1\n\na = {expression}\n')
    assert str(error.value).startswith(f'{tmp_path}/config.py:3: ') and 'is no literal' in str(error.value)
    assert '\n' not in str(error.value) and not trap.has_run()


@pytest.mark.parametrize(
    'statement',
    [
        'import os',
        'from os import path',
        'a = b = 1',
        'a, b = 1, 2',
        'a.b = 1',
        'a[0] = 1',
        'a: int = 1',
        'a += 1',
        'del a',
        'print(1)',
        '"text"',
        'def f(): pass',
        'class A: pass',
        'raise SystemExit',
        'while True: pass',
        '@print\nclass A: pass',
        'try:\n    a = 1\nfinally:\n    b = 1',
    ],
)
def test_statement_other_than_an_assignment_is_refused(statement, written):
    with pytest.raises(PreflightError, match=r'config\.py:\d: .* is no literal'):
        written(statement)


@pytest.mark.parametrize(
    'text, message',
    [
        pytest.param('a = ' + '[' * 100_000, 'too many nested', id='brackets'),
        pytest.param('a = ' + '-' * 100_000 + '1', 'nested too deeply', id='minus signs'),
        pytest.param('a = x' + '.x' * 100_000, 'nested too deeply|no literal', id='attributes'),
        pytest.param('a = ' + '1+' * 100_000 + '1', 'nested too deeply|no literal', id='sum'),
        pytest.param('a = ' + 'not ' * 100_000 + '1', 'nested too deeply', id='negations'),
        pytest.param('a = ' + 'lambda: ' * 50_000 + '1', 'nested too deeply', id='lambdas'),
        pytest.param('a = [' + '1,' * (MAX_BYTES // 2) + ']', 'more than 1048576 bytes', id='size'),
        pytest.param('a = ' + '9' * 10_000, 'limit', id='digits'),
        pytest.param('a = (', r'config\.py:1: ', id='syntax'),
        pytest.param('a = 1\0', 'null', id='null byte'),
        pytest.param(b'a = "\xff"', 'utf-8', id='not UTF-8'),
        pytest.param('filename = 1', 'filename is reserved', id='reserved name'),
    ],
)
def test_oversized_nested_or_invalid_file_is_an_error(text, message, written):
    with pytest.raises(PreflightError, match=message) as error:
        written(text)
    assert '\n' not in str(error.value) and len(str(error.value)) < 400


@pytest.mark.parametrize('depth', [50, 100, 199])
@pytest.mark.parametrize('left, right', [('[', ']'), ('{1: ', '}'), ('dict(a=', ')')])
def test_nested_brackets_are_read_or_an_error(depth, left, right, written):
    innermost = '1' if left != '[' else ''
    text = f'a = {left * depth}{innermost}{right * depth}'
    # Beyond 100 levels, some Python versions exhaust their recursion limit.
    with contextlib.suppress(PreflightError) if depth >= 100 else contextlib.nullcontext():
        assert written(text).a


def test_config_of_a_run_is_that_of_its_last_start(tmp_path):
    with pytest.raises(PreflightError, match='has no .*config.py'):
        read_run_config(tmp_path)
    for number in (2, 1):
        folder = tmp_path / f'2026010{number}_000000/vis_data'
        folder.mkdir(parents=True)
        (folder / 'config.py').write_text(f'number = {number}')
    assert read_run_config(tmp_path).number == 2


@pytest.mark.parametrize(
    'path',
    [
        *(
            REPO / f'configs/{name}_nano_sample.py'
            for name in ('dino_revcol', 'mask2former_revcol', 'revcol')
        ),
        REPO / 'configs/cascade_mask_rcnn_revcol_nano_sample.py',
        REPO / 'configs/baselines/upernet_convnext_sample.py',
        REPO / 'tests/configs/retinanet_revcol_nano_sample.py',
    ],
    ids=lambda path: path.stem,
)
def test_model_of_a_recorded_config_can_be_built(path, dumped):
    cfg = read_config(dumped(Config.fromfile(path, format_python_code=False)), recorded=True)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        assert isinstance(MODELS.build(cfg.model), torch.nn.Module)


@pytest.fixture(scope='module')
def segmentor():
    return Config.fromfile(SEGMENTOR, format_python_code=False)


@pytest.fixture
def change(segmentor, dumped):
    """A function that changes some keys of the segmentor's config, and reads it as a recorded one."""

    def read(**changes):
        cfg = copy.deepcopy(segmentor)
        cfg.merge_from_dict({key.replace('__', '.'): value for key, value in changes.items()})
        return read_recorded_model(dumped(cfg))

    return read


@pytest.mark.parametrize(
    'name', ['mmseg.UPerHead', 'mmseg.models.UPerHead', 'mmseg.models.decode_heads.uper_head.UPerHead']
)
def test_type_may_have_a_scope_or_be_the_path_of_a_registered_class(name, change):
    assert change(model__decode_head__type=name).model.decode_head.type == name


@pytest.mark.parametrize(
    'name',
    [
        'subprocess.Popen',
        'os.system',
        'builtins.exec',
        'evil',
        'evil.Model',
        'antigravity',
        'mmengine.utils.misc.subprocess.Popen',
        'mmengine.fileio.load',
        'mmseg.apis.init_model',
        'mmseg.subprocess.Popen',
        'revcol_mm.analysis.machine',
        'mmcv.no_such',
        '',
        '.',
    ],
)
def test_type_that_mmengine_would_import_is_refused(name, change, evil_module, trap):
    with pytest.raises(PreflightError) as error:
        change(model__decode_head__type=name)
    assert f'model.decode_head.type is {name!r}, which is registered neither' in str(error.value)
    assert not trap.has_run()


@pytest.mark.parametrize(
    'key', ['model', 'data_preprocessor', 'test_dataloader__collate_fn', 'visualizer', 'env_cfg__new', 'new']
)
def test_unregistered_type_is_refused_anywhere_in_a_config(key, change):
    with pytest.raises(PreflightError, match=f"{key.replace('__', '.')}.type is 'os.system'"):
        change(**{key: dict(type='os.system')})


def test_unregistered_type_is_refused_in_a_list(change):
    with pytest.raises(PreflightError, match=r"custom_hooks\.1\.type is 'os\.system'"):
        change(custom_hooks=[dict(type='NonFiniteHook'), dict(type='os.system')])


@pytest.mark.parametrize(
    'imports', [['revcol_mm', 'evil'], 'evil', ['revcol_mm.models', 'revcol_mmm'], ['a/b']]
)
def test_custom_imports_outside_of_revcol_mm_are_refused(imports, change, evil_module, trap):
    with pytest.raises(PreflightError, match='custom_imports names .*, which is no module of revcol_mm'):
        change(custom_imports=dict(imports=imports, _delete_=True))
    assert not trap.has_run()


@pytest.mark.parametrize(
    'changes',
    [
        dict(model__decode_head__loss_decode__class_weight='weights.pkl'),
        dict(model__decode_head__loss_decode__class_weight='pkl'),
        dict(model__decode_head__loss_decode__class_weight='weights.yaml'),
        dict(model__teacher_config='teacher.py'),
        dict(model__teacher_config='teacher.json'),
        dict(model__test_cfg__nms__threshold='print(1)'),
        dict(model__backbone__trust_remote_code=True),
        dict(model__backbone__target='os.system'),
        dict(test_dataloader__dataset__dataset=dict(type='CocoDataset')),
        dict(test_dataloader__dataset__ann_file='a.pkl'),
        dict(test_dataloader__dataset__pipeline=[dict(type='ResizeEdge', interpolation='print(1)')]),
        dict(test_dataloader__dataset__filter_cfg=dict(a='print(1)')),
        dict(model__decode_head__heads=dict(classes=dict(class_weight='weights.pkl'))),
        dict(model__decode_head___scope_='evil'),
        dict(model__decode_head__norm_cfg__metainfo=dict(type='os.system')),
    ],
    ids=str,
)
def test_value_that_may_be_code_or_a_file_with_code_is_refused(changes, change):
    with pytest.raises(PreflightError, match='may be code|may run code|is not allowed|not one of|neither'):
        change(**changes)


def test_names_of_classes_and_folders_may_look_like_code(change):
    names = dict(classes=['tv (on)', 'pickle', 'a.py', 'b.yaml'])
    cfg = change(test_dataloader__dataset__metainfo=names, test_dataloader__dataset__data_root='data (1)')
    assert cfg.test_dataloader.dataset.metainfo.classes == names['classes']


def test_openmmlab_evaluates_strings_and_unpickles_files_of_configs(tmp_path, trap):
    """Fails once OpenMMLab no longer does so, and the rules that are tested above can be dropped."""
    from mmcv.ops import batched_nms
    from mmseg.models.losses import CrossEntropyLoss

    with DefaultScope.overwrite_default_scope('mmpretrain'):
        TRANSFORMS.build(
            dict(type='torchvision/ConvertImageDtype', dtype=f'float32 if not {trap.code} else 0')
        )
    assert trap.has_run()
    (tmp_path / 'weights.pkl').write_bytes(pickle.dumps(trap.pickled()))
    CrossEntropyLoss(class_weight=str(tmp_path / 'weights.pkl'))
    assert trap.has_run()
    boxes, scores = torch.eye(4) + 1, torch.ones(4)
    nms = dict(type=f'{trap.code} or nms', iou_threshold=0.5)
    batched_nms(boxes, scores, torch.zeros(4, dtype=torch.long), nms)
    assert trap.has_run()
