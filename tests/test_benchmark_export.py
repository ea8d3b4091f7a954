"""The benchmark that compares exported files with their models."""

import json
import runpy
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from .random_checkpoint import CLASSIFIER, SEGMENTOR, random_checkpoint
from .subprocesses import REPO, run

TOOL = 'tools/analysis/benchmark_export.py'


def test_share_of_same_answers():
    share = runpy.run_path(str(REPO / TOOL))['share_of_same']
    labels = torch.tensor([[[0, 1], [1, 1]]])
    assert share(('labels', 'scores'), [labels, labels], [1 - labels, labels]) == 0
    assert share(('labels', 'scores'), [labels, labels], [labels.clamp(max=0), labels]) == 0.25
    boxes = torch.tensor([[[0.0, 0, 10, 10], [20, 20, 40, 40], [0, 0, 0, 0]]])
    scores, classes = torch.tensor([[0.9, 0.5, 0.1]]), torch.tensor([[1, 2, 3]])
    names, expected = ('boxes', 'scores', 'labels'), [boxes, scores, classes]
    assert share(names, expected, expected) == 1
    assert share(names, [boxes.flip(1), scores.flip(1), classes.flip(1)], expected) == 1
    assert share(names, [boxes, scores, torch.tensor([[1, 3, 3]])], expected) == 0.5
    assert share(names, [boxes, scores - 0.01, classes], expected) == 0
    assert share(names, [boxes + 1, scores, classes], expected) == 0
    assert share(names, expected, [boxes, scores - 0.7, classes]) is None
    assert share(('scores',), [torch.tensor([[0.2, 0.8]])], [torch.tensor([[0.3, 0.7]])]) == 1


@pytest.mark.parametrize('name', ['upernet_revcol_nano_sample', 'dino_revcol_nano_sample'])
def test_pictures_are_spread_over_the_test_data(name, sample_data):
    cfg = Config.fromfile(REPO / f'configs/{name}.py')
    dataset = cfg.test_dataloader.dataset
    dataset.data_root = str(sample_data / Path(dataset.data_root).name)
    choose = runpy.run_path(str(REPO / TOOL))['pictures_for_testing']
    pictures = choose(cfg, 20)
    assert len(pictures) == 4 and all(Path(picture).is_file() for picture in pictures)
    assert choose(cfg, 2) == [pictures[0], pictures[-1]]
    dataset.data_root = 'nowhere'
    with pytest.raises(FileNotFoundError, match='nowhere'):
        choose(cfg, 2)


def test_docs_quote_the_record():
    docs = (REPO / 'docs/analysis.md').read_text()
    record = json.loads((REPO / 'docs/analysis/export/benchmark_export.json').read_text())
    assert runpy.run_path(str(REPO / TOOL))['table'](record['models']) in docs
    assert record['machine'] in ' '.join(docs.split()) and len(record['models']) == 9
    assert all(row['same'] == 1 and row['pictures'] == 10 for row in record['models'])


@pytest.mark.slow
def test_classifier_and_segmentor_are_compared(sample_data, tmp_path):
    checkpoints = random_checkpoint(CLASSIFIER, tuple('0123456789')), random_checkpoint(SEGMENTOR)
    models = ['--models', CLASSIFIER, checkpoints[0], '--models', SEGMENTOR, checkpoints[1]]
    pictures = '--pictures', sample_data / 'ade20k/images/validation'
    said = run(TOOL, *models, *pictures, '--out', tmp_path)
    report = json.loads((tmp_path / 'benchmark_export.json').read_text())
    classifier, segmentor = report['models']
    assert (classifier['task'], segmentor['task']) == ('classification', 'semantic segmentation')
    for row, checkpoint in zip(report['models'], checkpoints):
        assert row['same'] > 0.99 and row['difference'] < 1e-4 and row['pictures'] == 4 and row['opset'] >= 18
        assert row['mib'] == pytest.approx(checkpoint.stat().st_size / 2**20, rel=0.1)
        assert f'| {row["model"]} | {row["task"]} | {row["opset"]} |' in said
