"""Models that cannot be built or do not fit the backbone, and missing devices, are errors that say so."""

import pytest
import torch
from mmengine.config import Config

from revcol_mm import RevCol
from revcol_mm.apis import init_model, pick_device
from revcol_mm.config.command_line import read_config
from revcol_mm.errors import CheckpointError, PreflightError, building
from revcol_mm.preflight import PreflightHook

from .bare_runner import Dataset, Runner

SEGMENTOR = 'configs/upernet_revcol_nano_sample.py'
DETECTOR = 'configs/dino_revcol_nano_sample.py'
CLASSIFIER = 'configs/revcol_nano_sample.py'


@pytest.mark.parametrize(
    'config, options, message',
    [
        pytest.param(SEGMENTOR, {'backbone.archh': 'tiny'}, "argument 'archh'", id='unknown argument'),
        pytest.param(
            SEGMENTOR, {'backbone.arch': 'giant'}, "arch must be one of nano.*'giant'", id='unknown arch'
        ),
        pytest.param(SEGMENTOR, {'backbone.type': 'RevColl'}, 'RevColl is not in', id='unknown backbone'),
        pytest.param(SEGMENTOR, {'decode_head.type': 'UperHead'}, 'UperHead is not in', id='unknown head'),
        pytest.param(
            SEGMENTOR, {'decode_head.in_index': [0, 1]}, 'AssertionError', id='indices and channels differ'
        ),
        pytest.param(SEGMENTOR, {'decode_head.num_classes': -1}, 'Error', id='negative classes'),
        pytest.param(DETECTOR, {'encoder.num_layers': 'two'}, 'TypeError', id='text for a number'),
        pytest.param(CLASSIFIER, {'num_classes': 0}, 'num_classes', id='no classes'),
    ],
)
def test_error_in_building_a_model_names_cause_and_line(config, options, message, in_repo):
    cfg = read_config(config)
    cfg.merge_from_dict({f'model.{key}': value for key, value in options.items()})
    with pytest.raises(PreflightError, match=rf'^cannot build the model: .*{message}.*\.py:\d+\)$'):
        init_model(cfg)


def test_checkpoint_error_in_building_is_unchanged():
    with pytest.raises(CheckpointError, match='^no weights$'), building('anything'):
        raise CheckpointError('no weights')


def check(model, cfg):
    """Check a model before a run without data."""
    runner = Runner(Dataset([]))
    runner.model, runner.cfg, runner._train_loop = model, Config(cfg), None
    PreflightHook().before_run(runner)


@pytest.mark.parametrize(
    'part, message',
    [
        pytest.param(
            dict(neck=dict(in_channels=[32, 64])), r'neck\.in_channels is \[32, 64\].*\[8, 16\]', id='neck'
        ),
        pytest.param(
            dict(decode_head=dict(in_channels=[8, 24])), r'decode_head.*\[8, 24\].*\[8, 16\]', id='head'
        ),
        pytest.param(
            dict(decode_head=dict(in_channels=8, in_index=1)), r'\[8\].*gives \[16\]', id='one level'
        ),
        pytest.param(
            dict(auxiliary_head=dict(in_channels=8, in_index=5)), r'auxiliary_head.*\[8\]', id='no such level'
        ),
        pytest.param(
            dict(neck=dict(in_channels=[8, 16]), decode_head=dict(in_channels=[3])), None, id='right'
        ),
    ],
)
def test_wrong_channels_are_an_error(part, message):
    backbone = RevCol(dict(channels=(8, 16), layers=(1, 1), num_columns=2), out_indices=(0, 1))
    model = torch.nn.ModuleDict(dict(backbone=backbone))
    if message is None:
        check(model, dict(model=part))
    else:
        with pytest.raises(PreflightError, match=message):
            check(model, dict(model=part))


@pytest.mark.parametrize(
    'option, value', [('max_iters', 0), ('max_iters', -5), ('max_epochs', 1.5), ('val_interval', 0)]
)
def test_training_length_that_is_no_positive_integer_is_an_error(option, value):
    with pytest.raises(
        PreflightError, match=rf'train_cfg\.{option} must be an integer of at least 1, got {value}'
    ):
        check(torch.nn.Identity(), dict(train_cfg={option: value}))


@pytest.mark.parametrize('device', ['gpu', 'cuda:99', 'cuda:-1', 'cpu:x', '', 'meta', 'CUDA 0'])
def test_missing_device_is_an_error(device):
    with pytest.raises(ValueError, match=f'there is no device {device!r}; available are cpu'):
        pick_device(device)
