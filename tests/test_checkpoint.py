"""Checkpoints of every layout load into a backbone; errors name what does not fit."""

import json
import os
import pickle
import subprocess

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

from revcol_mm import RevCol
from revcol_mm.apis import init_model
from revcol_mm.checkpoints.fitting import load_backbone
from revcol_mm.checkpoints.reading import read_checkpoint
from revcol_mm.errors import CheckpointError

from .checkpoints import SMALL, assert_same_features, assert_same_weights
from .conftest import DATA
from .subprocesses import REPO


@pytest.fixture
def path(source, tmp_path):
    """The source's state dict in a file."""
    torch.save(source.state_dict(), tmp_path / 'checkpoint.pth')
    return tmp_path / 'checkpoint.pth'


def test_published_checkpoint_loads_although_torch_refuses_it(source, published):
    with pytest.raises(pickle.UnpicklingError):
        torch.load(published, weights_only=True)
    model = RevCol(arch=SMALL, init_cfg=dict(type='Pretrained', checkpoint=str(published)))
    model.init_weights()
    assert_same_weights(model.state_dict(), source.state_dict())


def test_report_lists_matched_missing_and_unexpected_keys(source, published, log_messages):
    report = load_backbone(RevCol(arch=SMALL), published)
    assert set(report.matched) == set(source.state_dict())
    assert report.missing == report.mismatched == report.padded == []
    assert sorted(name.split('.')[0] for name in report.unexpected) == ['cls_blocks', 'decoder_blocks']
    (logged,) = log_messages
    assert f'matched {len(report.matched)}' in logged
    assert 'missing 0' in logged and "'cls_blocks': 1" in logged


@pytest.mark.parametrize('wrap', [lambda w: w, lambda w: {'state_dict': w}, lambda w: {'model': w}])
@pytest.mark.parametrize('prefix', ['', 'module.', 'backbone.', 'module.backbone.'])
def test_every_layout_and_prefix_loads(source, tmp_path, wrap, prefix):
    weights = {prefix + k: v for k, v in source.state_dict().items()}
    if 'backbone.' in prefix:
        weights['decode_head.conv_seg.weight'] = torch.rand(150, 32, 1, 1)
    torch.save(wrap(weights), tmp_path / 'checkpoint.pth')
    model = RevCol(arch=SMALL)
    load_backbone(model, tmp_path / 'checkpoint.pth')
    assert_same_weights(model.state_dict(), source.state_dict())


def test_format_before_torch_1_6_loads(source, tmp_path):
    torch.save(source.state_dict(), tmp_path / 'old.pth', _use_new_zipfile_serialization=False)
    model = RevCol(arch=SMALL)
    load_backbone(model, tmp_path / 'old.pth')
    assert_same_weights(model.state_dict(), source.state_dict())


def test_missing_weight_is_named(source, tmp_path):
    weights = source.state_dict()
    del weights['subnet1.alpha2']
    torch.save(weights, tmp_path / 'checkpoint.pth')
    with pytest.raises(CheckpointError, match=r'missing 1.*subnet1\.alpha2'):
        load_backbone(RevCol(arch=SMALL), tmp_path / 'checkpoint.pth')


def test_weight_with_another_shape_is_named_and_the_model_unchanged(path):
    model = RevCol(arch=dict(SMALL, channels=(8, 16, 24, 40)))
    before = model.stem[0].weight.clone()
    with pytest.raises(CheckpointError, match=r'subnet0\.alpha3.*32.*40'):
        load_backbone(model, path)
    assert torch.equal(model.stem[0].weight, before)


@pytest.mark.parametrize(
    'other, described',
    [
        (dict(num_columns=4), '4 columns'),
        (dict(num_columns=1), '1 columns'),  # although the checkpoint has all of its weights
        (dict(layers=(1, 1, 2, 1)), r'layers \[1, 1, 2, 1\]'),
        (dict(channels=(4, 8, 12, 16)), r'channels \[4, 8, 12, 16\]'),
    ],
)
def test_both_archs_are_named_if_they_differ(path, other, described):
    own = r'2 columns, channels \[8, 16, 24, 32\], layers \[1, 1, 1, 1\]'
    with pytest.raises(CheckpointError, match=rf'checkpoint has {own}\n  the model has .*{described}'):
        load_backbone(RevCol(arch={**SMALL, **other}), path)


@pytest.mark.parametrize(
    'content, message',
    [
        ({}, 'no weights in the checkpoint'),
        ({'epoch': 3}, r"no weights in the checkpoint.*\['epoch'\]"),
        ({'state_dict': {}}, 'no weights in the checkpoint'),
        ({'state_dict': 3}, 'no weights in the checkpoint'),
        ({'state_dict': {'conv1.weight': torch.ones(1)}}, 'the checkpoint has no RevCol'),
    ],
    ids=str,
)
def test_file_without_weights_of_a_revcol_is_an_error(content, message, tmp_path):
    torch.save(content, tmp_path / 'checkpoint.pth')
    with pytest.raises(CheckpointError, match=message):
        load_backbone(RevCol(arch=SMALL), tmp_path / 'checkpoint.pth')
    with pytest.raises(CheckpointError, match=message):
        init_model(REPO / 'configs/upernet_revcol_nano_sample.py', tmp_path / 'checkpoint.pth')


@pytest.mark.parametrize(
    'source, message',
    [
        ('nowhere.pth', r'nowhere\.pth.*https://.*init_cfg=None'),
        # Nothing answers at the discard port.
        ('http://127.0.0.1:9/base.pth', r'127\.0\.0\.1:9/base.*hub/checkpoints/\w+/base.*init_cfg=None'),
    ],
)
def test_error_for_an_unavailable_file_says_what_to_do(source, message, tmp_path, monkeypatch):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    with pytest.raises(FileNotFoundError, match=message):
        load_backbone(RevCol(arch=SMALL), source)


def test_padding_kernels_leaves_features_unchanged(source, path):
    model = RevCol(arch=SMALL, kernel_size=7)
    report = load_backbone(model, path)
    assert len(report.padded) == sum(name.endswith('dwconv.weight') for name in model.state_dict())
    assert_same_features(model, source)


def test_larger_kernels_than_the_model_s_are_an_error(tmp_path):
    torch.save(RevCol(arch=SMALL, kernel_size=7).state_dict(), tmp_path / 'checkpoint.pth')
    with pytest.raises(CheckpointError, match=r'dwconv\.weight.*7, 7.*3, 3'):
        load_backbone(RevCol(arch=SMALL), tmp_path / 'checkpoint.pth')


@pytest.mark.parametrize('function', [exec, eval, subprocess.call])
def test_pickled_calls_are_replaced(function, source, tmp_path, trap):
    torch.save({'model': source.state_dict(), 'config': trap.pickled(function)}, tmp_path / 'a.pth')
    assert read_checkpoint(tmp_path / 'a.pth')['config'] == {}
    assert not trap.has_run()
    torch.load(tmp_path / 'a.pth', weights_only=False)
    assert trap.has_run() and not trap.has_run()


@pytest.mark.parametrize('content', [lambda code: code, lambda code: {'model': {}, 'config': [(code,)]}])
def test_pickled_system_calls_are_refused(content, tmp_path, trap):
    torch.save(content(trap.pickled(os.system)), tmp_path / 'a.pth')
    with pytest.raises(CheckpointError, match='cannot read .*a.pth: .*system'):
        read_checkpoint(tmp_path / 'a.pth')
    assert not trap.has_run()


@pytest.mark.parametrize(
    'config, scope, kind',
    [
        ('cascade_mask_rcnn_revcol_t_coco', 'mmdet', 'detection'),
        ('upernet_revcol_t_ade20k', 'mmseg', 'segmentation'),
    ],
)
def test_published_heads_have_the_names_and_shapes_of_today_s_openmmlab(config, scope, kind):
    published = json.loads((DATA / 'mmcv1_head_keys.json').read_text())[kind]
    pytest.importorskip(scope)
    init_default_scope(scope)
    with torch.device('meta'):
        model = MODELS.build(Config.fromfile(REPO / f'configs/{config}.py').model)
    heads = {k: list(v.shape) for k, v in model.state_dict().items() if not k.startswith('backbone.')}
    assert heads == published
