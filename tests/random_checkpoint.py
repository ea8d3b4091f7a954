"""Checkpoints with random weights, for tools that analyse trained models."""

import tempfile
from functools import cache
from pathlib import Path

import torch

from revcol_mm.apis import init_model

from .subprocesses import REPO

SEGMENTOR = 'configs/upernet_revcol_nano_sample.py'
PLAIN_SEGMENTOR = 'configs/baselines/upernet_convnext_sample.py'
CLASSIFIER = 'configs/revcol_nano_sample.py'
_FOLDER = tempfile.TemporaryDirectory(prefix='random_checkpoint')


@cache
def random_checkpoint(config):
    """Return the path of a checkpoint with random weights for a config."""
    torch.manual_seed(0)
    path = Path(_FOLDER.name, f'{Path(config).stem}.pth')
    torch.save(init_model(REPO / config, device='cpu').state_dict(), path)
    return path


def data_options(data, layout):
    """Return the options that make a tool load training and test images from a folder."""
    return '--cfg-options', *(f'{s}_dataloader.dataset.data_root={data / layout}' for s in ('train', 'test'))
