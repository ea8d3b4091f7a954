"""Models that tests export."""

import torch
from mmengine.config import Config

from revcol_mm.apis import init_model

from .subprocesses import REPO

UPERNET = 'configs/upernet_revcol_nano_supervised_sample.py'
CLASSIFIER = 'configs/revcol_nano_sample.py'
MMPRETRAIN = 'tests/configs/classifier_revcol_nano_sample.py'
DINO = 'configs/dino_revcol_nano_sample.py'
RETINANET = 'tests/configs/retinanet_revcol_nano_sample.py'
CASCADE = 'configs/cascade_mask_rcnn_revcol_nano_sample.py'
MASK2FORMER = 'configs/mask2former_revcol_nano_sample.py'
INSTANCE = 'configs/mask2former_revcol_nano_instance_sample.py'
PANOPTIC = 'configs/mask2former_revcol_nano_panoptic_sample.py'

ARCH = dict(channels=[4, 6, 8, 10], layers=(1, 1, 1, 1), num_columns=2)
SMALL = {  # what has to fit ARCH
    UPERNET: {
        'decode_head.in_channels': ARCH['channels'],
        'auxiliary_head.in_channels': 8,
        'supervision.columns': [0],
        'supervision.head.in_channels': 8,
        **{f'{head}.channels': 8 for head in ('decode_head', 'auxiliary_head', 'supervision.head')},
        'test_cfg': dict(mode='whole'),
    },
    CLASSIFIER: {'supervision': None},
    MMPRETRAIN: {'head.in_channels': 10},
    DINO: {'neck.in_channels': ARCH['channels'][1:]},
}


def write_small_model(config, folder):
    """Write a config with a small backbone and random weights; return the two paths and the model."""
    cfg = Config.fromfile(REPO / config)
    cfg.model.backbone.arch = ARCH
    cfg.merge_from_dict({f'model.{key}': value for key, value in SMALL[config].items()})
    model = init_model(cfg, device='cpu')
    return *write_model(cfg, model, folder), model


def write_model(cfg, model, folder):
    cfg.dump(folder / 'model.py')
    torch.save(dict(state_dict=model.state_dict(), meta={}), folder / 'model.pth')
    return folder / 'model.py', folder / 'model.pth'


def perturbed_detector(config):
    """Return a detector whose parameters are all random, so that no output is constant."""
    cfg = Config.fromfile(REPO / config)
    if config == PANOPTIC:  # so that an untrained model predicts segments
        cfg.model.test_cfg.update(object_mask_thr=0.12, iou_thr=0.1)
    model = init_model(cfg, device='cpu')
    torch.manual_seed(0)
    for param in model.parameters():
        param.data.add_(0.02 * torch.randn_like(param))
    return model
