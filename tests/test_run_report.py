"""tools/analysis/run_report.py, which summarises a training on a single page of valid HTML."""

import base64
import json
import re
from io import BytesIO
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

pytest.importorskip('html5lib')
import html5lib

from .subprocesses import run
from .test_tools import on

TOOL = 'tools/analysis/run_report.py'
LOG = """2026/01/0{day} 10:00:00 - mmengine - INFO -
------------------------------------------------------------
System environment:
    sys.platform: linux
    GPU 0,1: NVIDIA <H100> & more
    PyTorch compiling details: PyTorch built with:
  - GCC 13.3

Runtime environment:
    seed: {day}
    GPU number: 2
------------------------------------------------------------
2026/01/0{day} 10:00:01 - mmengine - INFO - Config:
    not_environment: 1
2026/01/0{day} 11:30:00 - mmengine - INFO - the end
"""
CONFIG = """
default_hooks = dict(checkpoint=dict(save_best='auto'))
train_cfg = dict(max_epochs=3)
note = '</pre><script>alert(1)</script>'
"""


def write_start(work_dir, day, records):
    """Write the files that one start of a training leaves in its work dir."""
    folder = work_dir / f'2026010{day}_100000/vis_data'
    folder.mkdir(parents=True)
    (folder / 'scalars.json').write_text('\n'.join(map(json.dumps, records)))
    (folder / 'config.py').write_text(CONFIG)
    (folder.parent / 'run.log').write_text(LOG.format(day=day))


def train(step, loss, **more):
    return dict(loss=loss, time=0.5, data_time=0.1, iter=step, step=step, epoch=-(-step // 100), **more)


@pytest.fixture
def page(tmp_path, call_tool):
    """Write the report of a work dir, check its HTML, and return its elements and its text."""

    def write(work_dir):
        printed, error = call_tool(TOOL, work_dir, '--out', tmp_path / 'report.html')
        assert not error and str(tmp_path / 'report.html') in printed
        source = (tmp_path / 'report.html').read_text(encoding='utf-8')
        tree = html5lib.HTMLParser(strict=True, namespaceHTMLElements=False).parse(source)
        return tree, ' '.join(' '.join(tree.itertext()).split())

    return write


def table(tree, number):
    """Return the rows of a table by their first cell."""
    rows = [[''.join(cell.itertext()) for cell in row] for row in list(tree.iter('table'))[number].iter('tr')]
    return {row[0]: row[1:] for row in rows}


@pytest.mark.slow
def test_report_of_a_training_is_complete_and_self_contained(sample_data, tmp_path, page):
    work_dir = tmp_path / 'a <b>run</b>'
    columns = 'default_hooks.column_statistics'
    run(
        *('tools/train.py', 'configs/revcol_nano_sample.py', '--work-dir', work_dir, '--seed', 7),
        *on(sample_data, 'imagenet', 'train_dataloader.batch_size=2', f'{columns}.interval=1'),
        f'{columns}.type=ColumnStatisticsHook',
    )
    tree, text = page(work_dir)
    summary, metrics = table(tree, 0), table(tree, 1)
    assert summary['progress'] == ['iteration 4 of 4'] and summary['seed'] == ['7']
    assert f"--work-dir '{work_dir}'" in summary['command'][0] and summary['command'][0].startswith(
        'tools/train.py'
    )
    assert 'MiB, the whole process' in summary['peak memory'][0] and re.match('CPU|GPU', summary['device'][0])
    assert 'iter_4.pth' in summary['checkpoints'][0]
    assert len(summary['git commit'][0]) == 40 or summary['git commit'] == ['none']
    assert metrics['accuracy/top1'][1] == '4' and 'a <b>run</b>' in text
    assert 'MMEngine' in table(tree, 2) and "type='RevColClassifier'" in text

    curves, statistics, *pictures = tree.iter('img')
    assert pictures and all(picture.get('alt').startswith('scene_') for picture in pictures)
    for image in (curves, statistics, *pictures):
        kind, _, data = image.get('src').partition(';base64,')
        data = base64.b64decode(data)
        if kind == 'data:image/svg+xml':
            ElementTree.fromstring(data)
        else:
            assert Image.open(BytesIO(data)).size > (20, 20)
    assert not list(tree.iter('script')) and not list(tree.iter('link'))
    assert not [e for e in tree.iter() if e.get('href') or (e.get('src') or 'data:')[:5] != 'data:']


def test_report_of_a_resumed_run_combines_its_starts_and_escapes_text(tmp_path, page):
    first = [train(50, 3.0, memory=700), train(100, 2.0, memory=900), {'AP <i>': 0.1, 'time': 1, 'step': 1}]
    again = [train(150, 1.5, memory=800), train(200, 1.8), {'AP <i>': 0.05, 'AP_l': -1, 'time': 1, 'step': 2}]
    write_start(tmp_path, 1, first)
    write_start(tmp_path, 3, again)
    pictures = tmp_path / '20260103_100000/vis_data/vis_image'
    pictures.mkdir()
    for name in ('val_a.jpg_100', 'val_a.jpg_200', 'val_b.jpg_200'):
        Image.fromarray(np.zeros((700, 1400, 3), np.uint8)).save(pictures / f'{name}.png')
    tree, text = page(tmp_path)
    summary = table(tree, 0)
    assert summary['progress'] == ['iteration 200, epoch 2 of 3']
    assert summary['duration'] == ['3:00:00, in 2 starts'] and summary['began'] == ['2026-01-01 10:00:00']
    assert summary['time of an iteration'] == ['0.5 s, 20% of it waiting for data (medians)']
    assert summary['peak memory'] == ['900 MiB allocated on the GPU']
    assert summary['device'] == ['GPU 0,1: NVIDIA <H100> & more'] and summary['processes'] == ['2']
    assert summary['seed'] == ['3'] and summary['command'] == ['not logged']
    metrics = table(tree, 1)
    assert metrics['loss'] == ['1.8', '200', '1.5', '150']
    assert metrics['AP <i>'] == ['0.05', '200', '0.1', '100'] and metrics['AP_l'][0] == '-1'
    assert 'not_environment' not in table(tree, 2) and 'PyTorch compiling details' not in table(tree, 2)
    assert "note = '</pre><script>alert(1)</script>'" in text and not list(tree.iter('script'))
    captions = [''.join(caption.itertext()) for caption in tree.iter('figcaption')]
    assert captions == ['val_a.jpg, iteration 200', 'val_b.jpg, iteration 200', 'val_a.jpg, iteration 100']
    (_, *images) = tree.iter('img')
    data = base64.b64decode(images[0].get('src').partition(',')[2])
    assert Image.open(BytesIO(data)).size == (640, 320)


def test_report_without_validation_or_pictures(tmp_path, page):
    write_start(tmp_path, 1, [train(50, 3.0)])
    tree, text = page(tmp_path)
    assert 'The run stored no pictures' in text and len(list(tree.iter('img'))) == 1
    assert 'only ColumnStatisticsHook logs it' in table(tree, 0)['peak memory'][0]


def test_missing_log_and_wrong_out_are_errors(tmp_path, call_tool):
    assert 'has no */vis_data/scalars.json' in call_tool(TOOL, tmp_path)[1]
    write_start(tmp_path, 1, [train(50, 3.0)])
    _, error = call_tool(TOOL, tmp_path, '--out', tmp_path)
    assert f'--out must be a file, but {tmp_path} is a folder' in error


def test_configs_are_not_executed_and_broken_pictures_are_errors(tmp_path, call_tool):
    write_start(tmp_path, 1, [train(50, 3.0)])
    (config,) = tmp_path.glob('*/vis_data/config.py')
    (config.parent / 'vis_image').mkdir()
    (config.parent / 'vis_image/val_a.jpg_5.png').write_bytes(b'no picture')
    assert 'val_a.jpg_5.png' in call_tool(TOOL, tmp_path)[1]
    config.write_text(f'{CONFIG}a = open({str(tmp_path / "executed")!r}, "w")\n')
    _, error = call_tool(TOOL, tmp_path)
    assert re.match(r'error: .*/vis_data/config\.py:5: .* is no literal', error)
    assert not (tmp_path / 'executed').exists()
