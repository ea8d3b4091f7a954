"""tools/analysis/column_updates.py, on columns whose parameters were moved by known amounts."""

import json
import runpy

import pytest
import torch
from mmengine.config import Config

from revcol_mm.apis import init_model

from .random_checkpoint import PLAIN_SEGMENTOR, SEGMENTOR, random_checkpoint
from .subprocesses import REPO

TOOL = 'tools/analysis/column_updates.py'


@pytest.fixture
def config(tmp_path):
    """The config of a segmentor with three columns of its backbone."""
    cfg = Config.fromfile(REPO / PLAIN_SEGMENTOR)
    net = cfg.model.pop('backbone')
    cfg.model.backbone = dict(type='ReversibleColumns', net=net, num_columns=3)
    path = tmp_path / 'columns.py'
    cfg.dump(path)
    return path


def test_moves_and_cosines_are_those_of_the_parameters(config, tmp_path, call_tool):
    start = random_checkpoint(PLAIN_SEGMENTOR)
    model = init_model(config, device='cpu')
    model.backbone.load_network(torch.load(start)['state_dict'], 'start')
    stages = [
        [getattr(level, 'stage', level) for level in column.levels] for column in model.backbone.columns
    ]
    with torch.no_grad():
        for column, factor in zip(stages, (1.1, 1.2, 0.7)):
            for param in [param for stage in column for param in stage.parameters()]:
                param *= factor
    end = tmp_path / 'end.pth'
    torch.save(dict(state_dict=model.state_dict()), end)
    printed, error = call_tool(TOOL, config, start, end, '--out', tmp_path / 'out')
    assert not error and '| 3 | 2 | 0.300 | -1.00 |' in printed
    rows = json.loads((tmp_path / 'out/column_updates.json').read_text())
    assert [(row['level'], row['column']) for row in rows] == [(i, k) for i in range(4) for k in range(3)]
    assert [row['move'] for row in rows] == pytest.approx([0.1, 0.2, 0.3] * 4, rel=1e-3)
    assert [row['cosine'] for row in rows] == pytest.approx([1, 1, -1] * 4, abs=1e-3)


def test_cosine_of_a_column_that_did_not_move_is_empty(config, tmp_path, call_tool):
    start, end = random_checkpoint(PLAIN_SEGMENTOR), tmp_path / 'end.pth'
    model = init_model(config, device='cpu')
    model.backbone.load_network(torch.load(start)['state_dict'], 'start')
    torch.save(dict(state_dict=model.state_dict()), end)
    printed, error = call_tool(TOOL, config, start, end)
    assert not error and '| 3 | 2 | 0.000 ||' in printed


def test_other_backbones_are_an_error(call_tool):
    checkpoint = random_checkpoint(SEGMENTOR)
    _, error = call_tool(TOOL, SEGMENTOR, checkpoint, checkpoint)
    assert error == f'error: {SEGMENTOR}: the backbone must be ReversibleColumns in mode copies'


def test_docs_quote_the_recorded_updates():
    rows = json.loads((REPO / 'docs/trainings/camvid_growth/column_updates.json').read_text())
    assert runpy.run_path(str(REPO / TOOL))['table'](rows) in (REPO / 'docs/trainings.md').read_text()
