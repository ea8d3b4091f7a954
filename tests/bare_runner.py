"""Runners and data sets with only what the checks before a run look at."""

import copy
from types import SimpleNamespace

import torch
from mmengine.config import Config
from mmengine.dataset import InfiniteSampler
from mmengine.evaluator import Evaluator
from mmengine.logging import MMLogger
from mmengine.optim import OptimWrapper
from mmengine.registry import DATASETS, HOOKS, MODELS, init_default_scope
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop
from mmengine.runner import Runner as MMEngineRunner
from torch import nn
from torch.utils.data import DataLoader

from revcol_mm.models.without_weights import without_weights
from revcol_mm.preflight.class_weights import check_class_weights
from revcol_mm.preflight.feature_channels import check_channels
from revcol_mm.preflight.num_classes import check_num_classes

from .subprocesses import REPO

SEGMENTOR = 'upernet_revcol_nano_sample.py'
QUERIES = 'mask2former_revcol_nano_sample.py'
DETECTOR = 'dino_revcol_nano_sample.py'
CASCADE = 'cascade_mask_rcnn_revcol_nano_sample.py'
CLASSIFIER = 'revcol_nano_sample.py'
EPOCHS = 'revcol_t_in1k.py'


class Dataset:
    """A data set of masks."""

    data_root = 'somewhere'
    reduce_zero_label = True
    label_map = None

    def __init__(self, paths, num_classes=3, **attributes):
        self.paths = paths
        self.metainfo = dict(classes=('x',) * num_classes)
        vars(self).update(attributes)

    def __len__(self):
        return len(self.paths)

    def get_data_info(self, index):
        return dict(seg_map_path=self.paths[index])


class Runner:
    """A runner of a head without a forward pass."""

    _val_loop = _test_loop = None
    cfg = Config()

    def __init__(self, dataset, num_classes=3):
        self.model = nn.ModuleDict(dict(decode_head=nn.Identity()))
        self.model.decode_head.num_classes = num_classes
        self._train_loop = SimpleNamespace(dataloader=SimpleNamespace(dataset=dataset))


def read(config, options=()):
    """Read a config of configs/ and set options, such as {'model.neck.num_outs': 4}."""
    cfg = Config.fromfile(REPO / 'configs' / config)
    cfg.merge_from_dict(dict(options))
    return cfg


def metainfo(cfg):
    """Return the metainfo of the training data, without reading them."""
    dataset = cfg.train_dataloader.dataset
    default = DATASETS.get(f'{cfg.default_scope}.{dataset.type}').METAINFO
    # Data sets that find classes by listing folders have no METAINFO.
    counted = {} if default or 'num_classes' not in cfg.model else dict(classes=range(cfg.model.num_classes))
    return {**counted, **default, **dataset.get('metainfo', {})}


def bare_runner(cfg, num_images=100):
    """Return MMEngine's runner for a config, with a model without weights and numbers as images."""
    init_default_scope(cfg.default_scope)
    runner = object.__new__(MMEngineRunner)
    runner.cfg, runner.logger = cfg, MMLogger.get_current_instance()
    with without_weights():
        runner.model = MODELS.build(copy.deepcopy(cfg.model))
    images, sampler = range(num_images), None
    if cfg.train_dataloader.sampler.type == 'InfiniteSampler':
        sampler = InfiniteSampler(images)
    loader = DataLoader(images, cfg.train_dataloader.batch_size, sampler=sampler)
    loop = EpochBasedTrainLoop if 'max_epochs' in cfg.train_cfg else IterBasedTrainLoop
    options = {key: value for key, value in cfg.train_cfg.items() if key.startswith(('max_', 'val_'))}
    runner._train_loop = loop(runner, loader, **options)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    runner.optim_wrapper = OptimWrapper(optimizer)
    runner.param_schedulers = runner.build_param_scheduler(cfg.param_scheduler)
    runner._hooks = [HOOKS.build(cfg.default_hooks.checkpoint)]
    runner._hooks += [HOOKS.build(hook) for hook in cfg.get('custom_hooks', ()) if 'EMA' not in hook.type]
    evaluators = cfg.val_evaluator if isinstance(cfg.val_evaluator, list) else [cfg.val_evaluator]
    evaluator = Evaluator([{k: v for k, v in each.items() if k != 'ann_file'} for each in evaluators])
    runner.metainfo = evaluator.dataset_meta = metainfo(cfg)
    runner._val_loop, runner._test_loop = SimpleNamespace(evaluator=evaluator), None
    return runner


def check_model(runner):
    """Check the model of a bare runner as PreflightHook does."""
    check_channels(runner.model, runner.cfg.model)
    check_class_weights(runner.model)
    check_num_classes(runner.model, 'the data set', runner)
