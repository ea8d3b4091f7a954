"""Checkpoints with random weights, for tools that analyse trained models."""

import tempfile
from functools import cache
from pathlib import Path

import torch
from mmengine.config import Config

from revcol_mm.apis import init_model

from .subprocesses import REPO

SEGMENTOR = 'configs/upernet_revcol_nano_sample.py'
PLAIN_SEGMENTOR = 'configs/baselines/upernet_convnext_sample.py'
CLASSIFIER = 'configs/revcol_nano_sample.py'
DETECTOR = 'tests/configs/retinanet_revcol_nano_sample.py'
_FOLDER = tempfile.TemporaryDirectory(prefix='random_checkpoint')


@cache
def random_checkpoint(config, classes=None):
    """Return the path of a checkpoint with random weights for a config, and perhaps names of classes."""
    torch.manual_seed(0)
    path = Path(_FOLDER.name, f'{Path(config).stem}{"_named" if classes else ""}.pth')
    meta = dict(dataset_meta=dict(classes=classes)) if classes else {}
    torch.save(dict(meta=meta, state_dict=init_model(REPO / config, device='cpu').state_dict()), path)
    return path


def config_on(data, config, layout):
    """Return a config that loads all of its images from a folder."""
    cfg = Config.fromfile(REPO / config)
    for split in ('train', 'val', 'test'):
        cfg[f'{split}_dataloader'].dataset.data_root = f'{data / layout}/'
    return cfg


def data_options(data, layout):
    """Return the options that make a tool load training and test images from a folder."""
    return '--cfg-options', *(f'{s}_dataloader.dataset.data_root={data / layout}' for s in ('train', 'test'))
