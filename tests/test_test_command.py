"""Options of the command ``revcol test``, without a model."""

import sys

import pytest
from mmengine.config import Config

from revcol_mm.cli import test as command


class Built:
    """A runner whose test gives no metrics."""

    def test(self):
        return {}


@pytest.mark.parametrize('given', [None, 'elsewhere'])
def test_logs_go_below_the_work_dir_of_the_training(given, tmp_path, monkeypatch):
    folder = tmp_path / (given or 'run')
    cfg = Config(dict(work_dir=str(folder), test_evaluator=dict(type='IoUMetric'), launcher='none'))
    built = []
    (tmp_path / 'iter_1.pth').touch()
    monkeypatch.setattr(command, 'load_config', lambda args, loaders: cfg)
    monkeypatch.setattr(command.ResumableRunner, 'from_cfg', lambda cfg: built.append(cfg) or Built())
    options = ['--work-dir', str(folder)] if given else []
    monkeypatch.setattr(sys, 'argv', ['test', 'config.py', str(tmp_path / 'iter_1.pth'), *options])
    command.main()
    assert built[0].work_dir == str(folder if given else folder / 'test')


def test_predictions_are_written_by_evaluators_of_any_scope():
    metrics = [dict(type='mmdet.CocoMetric'), dict(type='VOCMetric')]
    cfg = Config(dict(test_evaluator=metrics, default_scope='mmdet'))
    command.write_predictions(cfg, 'out')
    assert cfg.test_evaluator == [dict(metrics[0], outfile_prefix='out/predictions'), metrics[1]]


def test_predictions_that_no_evaluator_writes_are_an_error():
    cfg = Config(dict(test_evaluator=dict(type='VOCMetric'), default_scope='mmdet'))
    with pytest.raises(ValueError, match='--out needs one of the evaluators IoUMetric, .* has VOCMetric'):
        command.write_predictions(cfg, 'out')
