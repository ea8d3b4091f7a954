"""Every config builds, and its numbers agree with the model's and the data's."""

import re

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope

from revcol_mm import RevCol
from revcol_mm.models.backbones.revcol import ARCHS

from .subprocesses import REPO

CONFIGS = sorted((REPO / 'configs').glob('*.py'))


def test_there_are_configs():
    assert CONFIGS


def test_channels_in_configs_are_the_backbone_s():
    cfg = Config.fromfile(REPO / 'configs/_base_/revcol.py')
    assert cfg.revcol_channels == {name: list(arch['channels']) for name, arch in ARCHS.items()}


@pytest.mark.parametrize('path', CONFIGS, ids=lambda p: p.stem)
def test_config_builds_and_agrees_with_itself(path):
    cfg = Config.fromfile(path)
    init_default_scope(cfg.default_scope)
    with torch.device('meta'):
        model = MODELS.build(cfg.model)
    assert isinstance(model.backbone, RevCol)
    assert cfg.model.decode_head.in_channels == list(model.backbone.out_channels)
    assert cfg.model.decode_head.strides == list(model.backbone.out_strides)
    assert len(cfg.model.decode_head.loss_cls.class_weight) == cfg.model.decode_head.num_classes + 1
    assert cfg.train_cfg.max_iters == cfg.param_scheduler[-1].end
    assert cfg.optim_wrapper.constructor == 'LayerDecayOptimWrapperConstructor'
    assert [evaluator.type for evaluator in [cfg.val_evaluator]] == ['IoUMetric']
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        types = [transform.type for transform in loader.dataset.pipeline]
        assert types[0] == 'LoadImageFromFile' and types[-1] == 'PackSegInputs'
        assert any(t.type == 'LoadAnnotations' and t.reduce_zero_label for t in loader.dataset.pipeline)


USER_CONFIG = """
model = dict(
    type='FasterRCNN',
    backbone=dict(type='ResNet', depth=50),
    neck=dict(type='FPN', in_channels=[256, 512, 1024, 2048], out_channels=16, num_outs=5))
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-4, weight_decay=0.05),
    paramwise_cfg=dict(norm_decay_mult=0))
"""


def test_the_readme_s_ten_lines_swap_revcol_into_a_user_s_config(tmp_path):
    (snippet,) = re.findall(r'```python\n(.*?)```', (REPO / 'README.md').read_text(), re.S)
    assert len(snippet.splitlines()) <= 10
    (tmp_path / 'base.py').write_text(USER_CONFIG)
    (tmp_path / 'user.py').write_text("_base_ = ['base.py']\n" + snippet)
    cfg = Config.fromfile(tmp_path / 'user.py')
    cfg.model.backbone.init_cfg = None
    init_default_scope('mmdet')
    model = torch.nn.ModuleDict(dict(backbone=MODELS.build(cfg.model.backbone)))
    outputs = MODELS.build(cfg.model.neck)(model.backbone(torch.rand(1, 3, 64, 64)))
    assert [tuple(output.shape[-2:]) for output in outputs] == [(16, 16), (8, 8), (4, 4), (2, 2), (1, 1)]
    groups = build_optim_wrapper(model, cfg.optim_wrapper).optimizer.param_groups
    assert {group['lr_scale'] for group in groups} >= {0.85**13, 0.85}
