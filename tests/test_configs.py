"""Every config builds, and its numbers agree with the model's and the data's."""

import pytest
import torch
from mmengine.config import Config
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
