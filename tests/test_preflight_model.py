"""A model, its evaluators and its schedule that do not fit each other are an error before the run."""

import copy
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import InfiniteSampler
from mmengine.evaluator import Evaluator
from mmengine.logging import MMLogger
from mmengine.optim import OptimWrapper
from mmengine.registry import DATASETS, HOOKS, MODELS, init_default_scope
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner
from torch import nn
from torch.utils.data import DataLoader

from revcol_mm.preflight.metrics import check_metrics
from revcol_mm.preflight.model import (
    check_batch_norm,
    check_channels,
    check_class_weights,
    check_num_classes,
)
from revcol_mm.preflight.schedule import check_schedule

from .subprocesses import REPO

CONFIGS = sorted((REPO / 'configs').glob('*.py'))


def metainfo(cfg):
    """What the data set tells of its classes; one of folders counts them."""
    dataset = cfg.train_dataloader.dataset
    told = DATASETS.get(f'{cfg.default_scope}.{dataset.type}').METAINFO
    counted = {} if told or 'num_classes' not in cfg.model else dict(classes=range(cfg.model.num_classes))
    return {**counted, **told, **dataset.get('metainfo', {})}


def bare_runner(cfg, num_images=100):
    """MMEngine's runner with as much as is checked, and a training loop over as many images."""
    init_default_scope(cfg.default_scope)
    runner = object.__new__(Runner)
    runner.cfg, runner.logger = cfg, MMLogger.get_current_instance()
    with torch.device('meta'):
        runner.model = MODELS.build(copy.deepcopy(cfg.model))
    loader = DataLoader(range(num_images), cfg.train_dataloader.batch_size, drop_last=False)
    if cfg.train_dataloader.sampler.type == 'InfiniteSampler':
        loader = DataLoader(range(num_images), loader.batch_size, sampler=InfiniteSampler(range(num_images)))
    is_epoch_based = 'max_epochs' in cfg.train_cfg
    loop = EpochBasedTrainLoop if is_epoch_based else IterBasedTrainLoop
    lengths = {key: cfg.train_cfg[key] for key in ('max_epochs', 'max_iters') if key in cfg.train_cfg}
    options = {k: v for k, v in cfg.train_cfg.items() if k.startswith('val_')}
    runner._train_loop = loop(runner, loader, **lengths, **options)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    runner.optim_wrapper = OptimWrapper(optimizer)
    runner.param_schedulers = runner.build_param_scheduler(cfg.param_scheduler)
    runner._hooks = [HOOKS.build(cfg.default_hooks.checkpoint)]
    runner._hooks += [HOOKS.build(hook) for hook in cfg.get('custom_hooks', ()) if 'Stopping' in hook.type]
    evaluators = cfg.val_evaluator if isinstance(cfg.val_evaluator, list) else [cfg.val_evaluator]
    evaluator = Evaluator([{k: v for k, v in each.items() if k != 'ann_file'} for each in evaluators])
    runner.metainfo = evaluator.dataset_meta = metainfo(cfg)
    runner._val_loop = SimpleNamespace(evaluator=evaluator)
    runner._test_loop = None
    return runner


def check(runner):
    check_channels(runner.model, runner.cfg.model)
    check_class_weights(runner.model)
    check_num_classes(runner.model, 'the data set', runner.metainfo)
    check_metrics(runner)
    check_schedule(runner)
    check_batch_norm(runner)


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_every_config_passes_without_a_warning(path, log_messages, monkeypatch):
    monkeypatch.setattr('revcol_mm.preflight.model.get_world_size', lambda: 8)  # as the configs say
    runner = bare_runner(Config.fromfile(path))
    del log_messages[:]
    check(runner)
    assert log_messages == []
