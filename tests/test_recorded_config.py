"""Configs that lie in work dirs are data: what MMEngine wrote is read as it was, and nothing in it runs."""

import builtins
import contextlib
import copy
import math
import pickle

import numpy as np
import pytest
import torch
from mmengine.config import Config, ConfigDict
from mmengine.registry import MODELS, TRANSFORMS, DefaultScope

from revcol_mm.config.command_line import read_config
from revcol_mm.config.recorded import MAX_BYTES, read_recorded_config, read_recorded_model, read_run_config
from revcol_mm.errors import PreflightError

from .subprocesses import REPO
from .test_checkpoint import RunsCode

SEGMENTOR = REPO / 'configs/upernet_revcol_nano_sample.py'
CONFIGS = sorted(
    path for path in (REPO / 'configs').rglob('*.py') if path.parent.name in ('configs', 'baselines')
)


def record(path, cfg):
    """Write a config as a run does."""
    cfg.dump(path)
    return path


@pytest.fixture
def written(tmp_path):
    """Writes text as a config, and reads that."""

    def read(text, reader=read_recorded_config):
        (tmp_path / 'config.py').write_bytes(text if isinstance(text, bytes) else text.encode())
        return reader(tmp_path / 'config.py')

    return read


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_what_mmengine_dumps_is_read_as_it_was(path, tmp_path):
    is_formatted = path.stem.endswith('_sample')  # formatting takes seconds, and changes only white space
    cfg = Config.fromfile(path, format_python_code=is_formatted, import_custom_modules=False)
    read = read_recorded_config(record(tmp_path / 'config.py', cfg))
    assert read.to_dict() == cfg.to_dict()
    assert isinstance(read.model, ConfigDict) and read.filename == str(tmp_path / 'config.py')
    assert read.text == (tmp_path / 'config.py').read_text()


def test_values_of_all_kinds_are_read_as_they_were(tmp_path):
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
    read = read_recorded_config(record(tmp_path / 'config.py', Config(values)))
    assert read.to_dict() == values and isinstance(read.one, tuple)


def test_text_that_python_joins_and_a_call_of_float_are_literals_too(written):
    assert written("a = 'x' 'y'\nb = [float('-inf'), nan]\nc = dict({'d': 1}, e=2)").a == 'xy'
    assert written("b = [float('-inf')]").b == [-math.inf]
    assert written('c = dict({"d": 1}, e=2)').c == dict(d=1, e=2)


@pytest.mark.parametrize(
    'expression',
    [
        'open({marker!r}, "w")',
        '__import__("os").system("touch {marker}")',
        'dict(a=[1, (2, dict(b=open({marker!r}, "w")))])',
        '[open({marker!r}, "w") for _ in (1,)]',
        '(lambda: open({marker!r}, "w"))()',
        'f"{{open({marker!r}, \'w\')}}"',
        '{{1: 2, **dict(a=open({marker!r}, "w"))}}',
        'dict(**dict(a=open({marker!r}, "w")))',
        'dict.fromkeys(open({marker!r}, "w"))',
        'dict([("a", open({marker!r}, "w"))])',
        'float(open({marker!r}, "w") and "1")',
        '1 if open({marker!r}, "w") else 2',
        '1 + 1',
        "'a' * 10**10",
        '9**9**9',
        '--1',
        'not 1',
        '-"a"',
        '{{[]: 1}}',
        'float("1e9")',
        'print',
        '"a".upper',
        '[*(1, 2)]',
        '(b := 1)',
        '...',
    ],
)
def test_what_is_no_literal_is_refused_with_its_line_and_does_not_run(expression, written, tmp_path):
    marker = tmp_path / 'it_ran'
    with pytest.raises(PreflightError) as error:
        written(f'good = 1\n\na = {expression.format(marker=str(marker))}\n')
    assert str(error.value).startswith(f'{tmp_path}/config.py:3: ') and 'is no literal' in str(error.value)
    assert '\n' not in str(error.value) and not marker.exists()


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
        'while True: pass',
        'raise SystemExit',
        '@print\nclass A: pass',
        'try:\n    a = 1\nfinally:\n    b = 1',
    ],
)
def test_a_statement_that_assigns_no_literal_is_refused(statement, written):
    with pytest.raises(PreflightError, match=r'config\.py:\d: .* is no literal'):
        written(statement)


@pytest.mark.parametrize(
    'text, message',
    [
        pytest.param('a = ' + '[' * 100_000, 'too many nested', id='brackets'),
        pytest.param('a = ' + '-' * 100_000 + '1', 'nested too deeply', id='signs'),
        pytest.param('a = x' + '.x' * 100_000, 'nested too deeply|no literal', id='attributes'),
        pytest.param('a = ' + '1+' * 100_000 + '1', 'nested too deeply|no literal', id='sum'),
        pytest.param('a = ' + 'not ' * 100_000 + '1', 'nested too deeply', id='negations'),
        pytest.param('a = ' + 'lambda: ' * 50_000 + '1', 'nested too deeply', id='functions'),
        pytest.param('a = [' + '1,' * (MAX_BYTES // 2) + ']', 'more than 1048576 bytes', id='size'),
        pytest.param('a = ' + '9' * 10_000, 'limit', id='digits'),
        pytest.param('a = (', r'config\.py:1: ', id='syntax'),
        pytest.param('a = 1\0', 'null', id='null byte'),
        pytest.param(b'a = "\xff"', 'utf-8', id='no text'),
        pytest.param('filename = 1', 'filename is reserved', id='reserved name'),
    ],
)
def test_what_would_fill_memory_or_the_stack_or_is_no_python_is_an_error(text, message, written):
    with pytest.raises(PreflightError, match=message) as error:
        written(text)
    assert '\n' not in str(error.value) and len(str(error.value)) < 400


def test_as_deeply_as_python_reads_brackets_a_config_is_read_or_is_an_error(written):
    for depth in (50, 100, 199):
        for left, right in (('[', ']'), ('{1: ', '}'), ('dict(a=', ')')):
            text = f'a = {left * depth}{right * depth}'.replace(': }', ': 1}').replace('=)', '=1)')
            if depth < 100:
                assert written(text).a
            else:
                with contextlib.suppress(PreflightError):
                    written(text)


def test_the_config_of_a_run_is_that_of_its_last_start(tmp_path):
    with pytest.raises(ValueError, match='has no .*config.py'):
        read_run_config(tmp_path)
    for number in (2, 1):
        folder = tmp_path / f'2026010{number}_000000/vis_data'
        folder.mkdir(parents=True)
        (folder / 'config.py').write_text(f'number = {number}')
    assert read_run_config(tmp_path).number == 2


# Models of recorded configs.


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
def test_models_of_openmmlab_and_ours_can_be_built_from_what_was_recorded(path, tmp_path):
    cfg = Config.fromfile(path, format_python_code=False)
    cfg = read_config(record(tmp_path / 'config.py', cfg), recorded=True)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        assert isinstance(MODELS.build(cfg.model), torch.nn.Module)


@pytest.fixture(scope='module')
def segmentor():
    return Config.fromfile(SEGMENTOR, format_python_code=False)


@pytest.fixture
def change(segmentor, tmp_path):
    """Reads the segmentor's recorded config with some keys changed."""

    def read(**changes):
        cfg = copy.deepcopy(segmentor)
        cfg.merge_from_dict({key.replace('__', '.'): value for key, value in changes.items()})
        return read_recorded_model(record(tmp_path / 'config.py', cfg))

    return read


@pytest.mark.parametrize(
    'name', ['mmseg.UPerHead', 'mmseg.models.UPerHead', 'mmseg.models.decode_heads.uper_head.UPerHead']
)
def test_a_type_may_have_its_scope_or_be_the_path_of_a_registered_class(name, change):
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
def test_a_type_that_mmengine_would_import_from_anywhere_is_refused(name, change, tmp_path, monkeypatch):
    (tmp_path / 'evil.py').write_text(f'open({str(tmp_path / "it_ran")!r}, "w")')
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(PreflightError) as error:
        change(model__decode_head__type=name)
    assert f'model.decode_head.type is {name!r}, which neither' in str(error.value)
    assert not (tmp_path / 'it_ran').exists()


@pytest.mark.parametrize(
    'key', ['model', 'data_preprocessor', 'test_dataloader__collate_fn', 'visualizer', 'env_cfg__new', 'new']
)
def test_an_imported_type_is_refused_anywhere_in_a_config(key, change):
    with pytest.raises(PreflightError, match=f"{key.replace('__', '.')}.type is 'os.system'"):
        change(**{key: dict(type='os.system')})
    with pytest.raises(PreflightError, match=r"custom_hooks\.1\.type is 'os\.system'"):
        change(custom_hooks=[dict(type='NonFiniteHook'), dict(type='os.system')])


@pytest.mark.parametrize(
    'imports', [['revcol_mm', 'evil'], 'evil', ['revcol_mm.models', 'revcol_mmm'], ['a/b']]
)
def test_imports_of_others_are_refused(imports, change, tmp_path, monkeypatch):
    (tmp_path / 'evil.py').write_text(f'open({str(tmp_path / "it_ran")!r}, "w")')
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(PreflightError, match='custom_imports names .*, which is not of revcol_mm'):
        change(custom_imports=dict(imports=imports, _delete_=True))
    assert not (tmp_path / 'it_ran').exists()


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
def test_strings_that_are_code_or_name_some_are_refused(changes, change):
    with pytest.raises(PreflightError, match='may be code|may run code|is read when|none of|neither'):
        change(**changes)


def test_names_of_classes_and_folders_may_be_any_words(change):
    names = dict(classes=['tv (on)', 'pickle', 'a.py', 'b.yaml'])
    cfg = change(test_dataloader__dataset__metainfo=names, test_dataloader__dataset__data_root='data (1)')
    assert cfg.test_dataloader.dataset.metainfo.classes == names['classes']


def test_openmmlab_does_run_strings_and_pickles_of_literal_configs(tmp_path):
    """What is refused above is no fancy: when upstream mends it, the rules can go."""
    from mmseg.models.losses import CrossEntropyLoss

    def ran():
        found = (tmp_path / 'it_ran').exists()
        (tmp_path / 'it_ran').unlink(missing_ok=True)
        return found

    call = f'open({str(tmp_path / "it_ran")!r}, "w")'
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        TRANSFORMS.build(dict(type='torchvision/ConvertImageDtype', dtype=f'float32 if {call} else 0'))
    assert ran()
    (tmp_path / 'weights.pkl').write_bytes(pickle.dumps(RunsCode(builtins.eval, call)))
    CrossEntropyLoss(class_weight=str(tmp_path / 'weights.pkl'))
    assert ran()
    from mmcv.ops import batched_nms

    boxes, nms = (
        torch.tensor(np.eye(4, dtype=np.float32) + 1),
        dict(type=f'{call} and nms', iou_threshold=0.5),
    )
    batched_nms(boxes, boxes[:, 0], torch.zeros(4, dtype=torch.long), nms)
    assert ran()
