"""Replacement of backbones by RevCol, and the examples and table in docs/swap_in.md."""

import json
import re
import runpy

import pytest
from mmengine.config import Config

from revcol_mm.analysis.swap_in import swap_in
from revcol_mm.analysis.trial import Trial, try_model
from revcol_mm.check_env import installed_set

from .subprocesses import REPO, run

TOOL = 'tools/analysis/swap_in.py'
PAGE = (REPO / 'docs/swap_in.md').read_text()
EXAMPLES = re.findall(r'^```python\n(.*?)^```', PAGE, re.S | re.M)
NANO = dict(type='RevCol', arch='nano')
FASTER_RCNN = 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py'
C4 = 'mmdet::faster_rcnn/faster-rcnn_r50-caffe_c4-1x_coco.py'
# One method of each kind. Detectors: FPN, cascade of RoI heads, DETR, single level, external proposals, two
# necks, semantic branch, detector in a tracker, teacher and student, re-identification. Segmentors: single
# head, two levels, in_channels of another name, nested heads, neck that passes features on, nested backbone.
METHODS = [
    *(f'mmdet::{name}' for name in ('atss', 'cascade_rcnn', 'conditional_detr', 'yolof', 'fast_rcnn')),
    *(f'mmdet::{name}' for name in ('dyhead', 'panoptic_fpn', 'qdtrack', 'soft_teacher', 'reid')),
    *(f'mmseg::{name}' for name in ('fcn', 'ann', 'deeplabv3plus', 'knet', 'fastfcn', 'bisenetv1')),
]
upstream = pytest.mark.skipif(
    installed_set() == 'onedl', reason='mmseg:: does not resolve, and methods differ'
)
tool = runpy.run_path(str(REPO / TOOL))


def read(name):
    return Config.fromfile(tool['config_path'](name))


def plain(model):
    """Return a config's model with tuples as lists and without the scopes that inherited configs add."""
    return json.loads(
        json.dumps(model), object_pairs_hook=lambda pairs: {k: v for k, v in pairs if k != '_scope_'}
    )


@upstream
@pytest.mark.parametrize('code', EXAMPLES, ids=lambda code: re.search(r'::(\w+)', code)[1])
def test_docs_example_equals_the_generated_config(code, tmp_path):
    path = tmp_path / 'config.py'
    path.write_text(code)
    name = re.search(r"_base_ = '(.*)'", code)[1]
    cfg = swap_in(read(name), dict(type='RevCol', arch='tiny'))
    assert plain(Config.fromfile(path).model) == plain(cfg.model)
    assert 'revcol_mm' in cfg.custom_imports['imports']


@pytest.mark.parametrize('name', [C4, *METHODS])
def test_method_trains_and_predicts(name):
    cfg = swap_in(read(tool['methods']().get(name, name)), NANO)
    assert try_model(cfg, side=64) == Trial('', '')


@pytest.mark.parametrize(
    'changes, message',
    [
        ({'neck.in_channels': [1, 2, 3, 4]}, r'FPN cannot be built or run: RuntimeError'),
        (
            {'backbone.strides': (1, 1, 2, 2)},
            r'ResNet has strides \[4, 4, 8, 16\], which RevCol with strides \[4, 8, 16, 32\]',
        ),
        ({'backbone.depth': 51}, 'ResNet cannot be built or run: KeyError: .*51'),
        ({'backbone': None}, 'no backbone'),
    ],
)
def test_unsuitable_model_is_an_error(changes, message):
    cfg = read(FASTER_RCNN)
    cfg.merge_from_dict({f'model.{key}': value for key, value in changes.items()})
    with pytest.raises(ValueError, match=message):
        swap_in(cfg, NANO)


def test_out_indices_are_an_error():
    with pytest.raises(ValueError, match='leave out_indices out'):
        swap_in(read(FASTER_RCNN), dict(NANO, out_indices=(0,)))


def test_trial_reports_errors_of_training_and_prediction():
    cfg = swap_in(read(FASTER_RCNN), NANO)
    cfg.model.roi_head.bbox_head.loss_cls.loss_weight = float('nan')
    assert try_model(cfg, side=64) == Trial('ValueError: the loss is nan', '')
    cfg.model.neck.in_channels = [32, 64, 128, 255]
    assert all('RuntimeError' in why for why in try_model(cfg, side=64))


@upstream
def test_docs_table_has_every_method_and_equals_the_record():
    report = json.loads((REPO / 'docs/swap_in.json').read_text())
    methods = tool['methods']()
    assert {name: result['config'] for name, result in report['results'].items()} == {
        name: config for name, config in methods.items() if config
    }
    assert report['without'] == [name for name, config in methods.items() if not config]
    assert tool['table'](report) in PAGE


def test_tool_writes_a_config_that_other_tools_read(tmp_path, call_tool):
    printed, error = call_tool(TOOL, FASTER_RCNN, '--out', tmp_path / 'my_config.py')
    assert not printed and not error
    printed, error = call_tool('tools/analysis/get_flops.py', tmp_path / 'my_config.py', '--shape', 64, 64)
    assert not error and 'backbone ' in printed
    assert "type='RevCol'" in call_tool(TOOL, tmp_path / 'my_config.py', '--arch', 'nano')[0]
    assert 'no config' in call_tool(TOOL, 'mmdet::detr/none.py')[1]
    assert 'must be one of mmdet, mmseg' in call_tool(TOOL, 'mmpretrain::resnet/resnet50_8xb32_in1k.py')[1]


@pytest.mark.slow
def test_tool_tests_methods_and_survives_a_timeout(tmp_path, call_tool):
    out = tmp_path / 'table.md'
    out.write_text('before\n<!-- table: swap_in -->\n<!-- end -->\nafter\n')
    run(TOOL, '--methods', 'mmseg::fcn', '--out', out)
    report = json.loads(out.with_suffix('.json').read_text())
    assert report['results']['mmseg::fcn']['revcol'] == dict(training='', prediction='')
    printed = run(TOOL, '--methods', 'mmseg::ann', '--timeout', 0.01, '--out', out)
    assert 'mmseg::ann neither neither still running' in printed
    text = out.read_text()
    assert text.startswith('before\n') and text.endswith('after\n')
    assert all(f'| {name}_r50' in text for name in ('fcn/fcn', 'ann/ann'))
    assert (
        'no method with a config with ResNet-50: mmdet::yolox'
        in call_tool(TOOL, '--methods', 'mmdet::yolox')[1]
    )


def test_options_for_testing_methods_are_refused_beside_a_config():
    for options in (('--timeout', 5), ('--methods', 'mmdet::detr')):
        said = run(TOOL, 'configs/dino_revcol_t_coco.py', *options, expect=2)
        assert '--methods and --timeout are for testing methods: leave out CONFIG' in said
