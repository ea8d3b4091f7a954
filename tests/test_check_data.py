"""tools/check_data.py, and the checks of data in tools/train.py."""

import json
import shutil

import pytest
from mmengine.config import Config

from revcol_mm.preflight.check_data import check_data

from .small_datasets import (
    as_corners,
    kinds,
    rewrite,
    segmentation_config,
    set_in_all,
    set_in_first,
)
from .subprocesses import sample_options


def test_the_tool_prints_a_table_and_writes_json(coco, tmp_path, call_tool):
    rewrite(tmp_path, 'train', set_in_first('annotations', iscrowd=1))
    coco.dump(tmp_path / 'config.py')
    report = tmp_path / 'reports/report.json'
    printed, error = call_tool('tools/check_data.py', tmp_path / 'config.py', '--out', report, '--workers', 2)
    assert error in ('', '0') and '0 kinds of errors, 1 of warnings' in printed
    assert 'train: CocoDataset' in printed and '14 images' in printed
    (tmp_path / 'val/val_3.png').unlink()
    printed, error = call_tool('tools/check_data.py', tmp_path / 'config.py', '--out', report)
    assert error == '1' and '| error | 1 | missing image |' in printed
    assert printed.index('| error |') < printed.index('| warning | 1 | crowds |')
    result = json.loads(report.read_text())
    assert (result['errors'], result['warnings']) == (1, 1)
    assert result['findings'][0]['examples'] == [f'{tmp_path}/val/val_3.png']


def test_unbuildable_dataset_is_reported_with_other_findings(coco, tmp_path):
    rewrite(tmp_path, 'train', set_in_first('images', id=1))
    (tmp_path / 'train/train_5.png').unlink()
    (tmp_path / 'train/train_6.png').write_bytes(b'')
    coco.val_dataloader.dataset.data_root = str(tmp_path / 'nowhere')
    expected = {'duplicate id of images', 'missing image', 'broken image', 'missing data', 'cannot build'}
    assert expected <= kinds(coco)


def test_a_model_that_cannot_be_built_is_a_warning(coco):
    coco.model.type = 'NoModel'
    assert kinds(coco, 'warning') == {'model not compared'} and not kinds(coco)


def test_a_config_without_dataloaders_is_an_error():
    with pytest.raises(ValueError, match='has no dataloaders'):
        check_data(Config(dict(default_scope='mmdet', model=dict())))


def test_files_of_two_splits_are_reported_once(tmp_path):
    cfg = segmentation_config(tmp_path)
    cfg.test_dataloader = cfg.val_dataloader
    cfg.test_evaluator = dict(type='IoUMetric', ignore_index=7)
    (tmp_path / 'masks/val/val_3.png').unlink()
    findings = [each for each in check_data(cfg)[1] if each.severity == 'error']
    assert [each.kind for each in findings] == ['missing mask', 'ignore_index']


def test_training_stops_before_the_first_iteration(sample_data, tmp_path, call_tool):
    data = tmp_path / 'coco'
    shutil.copytree(sample_data / 'coco', data)
    rewrite(data / 'annotations', 'instances_train2017', set_in_all('bbox', as_corners))
    arguments = '--work-dir', tmp_path / 'work', *sample_options(tmp_path, 'coco')
    config = 'configs/cascade_mask_rcnn_revcol_nano_sample.py'
    printed, error = call_tool('tools/train.py', config, *arguments)
    path = data / 'annotations/instances_train2017.json'
    assert error.startswith(f'error: {path}: ') and 'seem to be [x1, y1, x2, y2]' in error
    assert 'Iter(train)' not in printed
