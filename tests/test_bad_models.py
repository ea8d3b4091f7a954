"""Models that cannot be built or do not fit the backbone, and missing devices, are errors that say so."""

import pytest
from mmengine.config import Config

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


@pytest.mark.parametrize(
    'option, value', [('max_iters', 0), ('max_iters', -5), ('max_epochs', 1.5), ('val_interval', 0)]
)
def test_training_length_that_is_no_positive_integer_is_an_error(option, value):
    runner = Runner(Dataset([]))
    runner.cfg = Config(dict(train_cfg={option: value}))
    message = rf'train_cfg\.{option} must be an integer of at least 1, got {value}'
    with pytest.raises(PreflightError, match=message):
        PreflightHook().before_run(runner)


@pytest.mark.parametrize('device', ['gpu', 'cuda:99', 'cuda:-1', 'cpu:x', '', 'meta', 'CUDA 0'])
def test_missing_device_is_an_error(device):
    with pytest.raises(ValueError, match=f'there is no device {device!r}; available are cpu'):
        pick_device(device)
