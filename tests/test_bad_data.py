"""Bad annotation files, data sets, dataloaders, masks and images are errors that name the file."""

import json

import numpy as np
import pytest
from mmengine.config import Config
from mmengine.registry import DefaultScope
from PIL import Image

from revcol_mm.errors import PreflightError
from revcol_mm.preflight import PreflightHook, check_files
from revcol_mm.training.runner import ResumableRunner
from revcol_mm.training.seeded_dataset import BrokenSampleError

from .bare_runner import Dataset, Runner

BOX = dict(id=1, image_id=1, category_id=1, bbox=[1, 1, 4, 4], area=16, iscrowd=0)
IMAGE = dict(id=1, file_name='a.png', height=6, width=8)


def coco(folder, text=None, **changes):
    """Write a COCO data set of one image, and return its config.

    Args:
        folder: Where to write it.
        text: Contents of the annotation file, in place of valid ones.
        changes: Replacements for the lists of the annotation file.
    """
    (folder / 'images').mkdir(parents=True)
    Image.new('RGB', (8, 6)).save(folder / 'images/a.png')
    content = dict(images=[IMAGE], annotations=[BOX], categories=[dict(id=1, name='x')])
    (folder / 'a.json').write_text(json.dumps({**content, **changes}) if text is None else text)
    return dict(
        type='CocoDataset',
        data_root=str(folder),
        ann_file='a.json',
        data_prefix=dict(img='images/'),
        metainfo=dict(classes=('x',)),
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='LoadAnnotations', with_bbox=True),
            dict(type='PackDetInputs'),
        ],
    )


def load(dataset, **loader):
    """Build a dataloader as a run does, and return the first sample."""
    cfg = dict(batch_size=1, num_workers=0, sampler=dict(type='DefaultSampler'), dataset=dataset)
    with DefaultScope.overwrite_default_scope('mmdet'):
        return ResumableRunner.build_dataloader({**cfg, **loader}).dataset[0]


@pytest.mark.parametrize(
    'changes, message',
    [
        pytest.param(dict(text='{"images": ['), 'JSONDecodeError', id='truncated'),
        pytest.param(dict(text='<html>404</html>'), 'JSONDecodeError', id='web page'),
        pytest.param(dict(text='[1]'), 'AssertionError', id='list'),
        pytest.param(dict(text='{"images": 3}'), 'is not a list of JSON objects', id='number of images'),
        pytest.param(dict(images=[]), 'it has no images', id='no images'),
        pytest.param(dict(images=[dict(file_name='a.png')]), "1 images without 'id'", id='image without id'),
        pytest.param(
            dict(images=[dict(id=1, height=6, width=8)]), "without 'file_name'", id='image without name'
        ),
        pytest.param(dict(images=[{**IMAGE, 'width': '8'}]), "a.png with '8' x 6", id='width as text'),
        pytest.param(dict(images=[{**IMAGE, 'height': 0}]), 'a.png with 8 x 0', id='height 0'),
        pytest.param(dict(categories=[]), 'it has no categories', id='no categories'),
        pytest.param(dict(annotations=[dict(id=1)]), "without 'image_id'", id='object without image'),
        pytest.param(
            dict(annotations=[{**BOX, 'bbox': [1, 1, 3]}]), 'that are not 4 numbers', id='3 numbers'
        ),
        pytest.param(
            dict(annotations=[{**BOX, 'bbox': '1 1 3 3'}]), 'that are not 4 numbers', id='box as text'
        ),
        pytest.param(
            dict(annotations=[{**BOX, 'bbox': list('1133')}]), 'that are not 4 numbers', id='numbers as text'
        ),
        pytest.param(
            dict(annotations=[{**BOX, 'area': '16'}]), "'area' .*is not a number", id='area as text'
        ),
    ],
)
def test_bad_annotation_file_is_an_error(changes, message, tmp_path):
    with pytest.raises(PreflightError, match=rf'{tmp_path}/data/a\.json: .*{message}') as error:
        load(coco(tmp_path / 'data', **changes))
    assert '; ' in str(error.value) or 'cannot build' in str(error.value)  # names the remedy


@pytest.mark.parametrize(
    'changes, message',
    [
        pytest.param(
            dict(images=[IMAGE, {**IMAGE, 'file_name': 'b.png'}]),
            '2 images have the id 1; give each a unique id',
            id='images',
        ),
        pytest.param(
            dict(annotations=[BOX, BOX]),
            '2 annotations have the id 1; give each a unique id',
            id='annotations',
        ),
        pytest.param(
            dict(categories=[dict(id=1, name='x'), dict(id=1, name='y')]),
            '2 categories have the id 1; give each a unique id',
            id='categories',
        ),
        pytest.param(
            dict(annotations=[{**BOX, 'category_id': 7}]),
            '1 annotations whose category_id is not the id of any of the categories, such as 7; '
            'use the ids of categories, such as 1',
            id='no such category',
        ),
    ],
)
def test_bad_ids_are_an_error(changes, message, tmp_path):
    with pytest.raises(PreflightError, match=rf'^{tmp_path}/data/a\.json: {message}$'):
        load(coco(tmp_path / 'data', **changes))


def test_objects_of_unlisted_images_are_left_out_with_a_warning(tmp_path, log_messages):
    sample = load(coco(tmp_path / 'data', annotations=[BOX, {**BOX, 'id': 2, 'image_id': 5}]))
    assert len(sample['data_samples'].gt_instances) == 1
    problem = '1 annotations whose image_id is not the id of any of the images, such as 5; they are left out'
    assert f'{tmp_path}/data/a.json: {problem}' in log_messages


@pytest.mark.parametrize(
    'box',
    [
        pytest.param([1, 1, 0, 4], id='width 0'),
        pytest.param([1, 1, -3, 4], id='negative width'),
        pytest.param([100, 100, 3, 4], id='outside'),
        pytest.param([float('nan'), 1, 3, 4], id='NaN'),
    ],
)
def test_boxes_without_area_are_left_out(box, tmp_path):
    sample = load(coco(tmp_path / 'data', annotations=[{**BOX, 'bbox': box}]))
    assert len(sample['data_samples'].gt_instances) == 0


@pytest.mark.parametrize(
    'loader, dataset, message',
    [
        pytest.param(dict(batch_size=0), {}, 'batch_size', id='batch size 0'),
        pytest.param(dict(num_workers=-1), {}, 'num_workers', id='negative workers'),
        pytest.param(dict(prefetch_factor=-1), {}, 'prefetch_factor', id='negative prefetch factor'),
        pytest.param(dict(sampler=dict(type='NoSampler')), {}, 'NoSampler is not in', id='unknown sampler'),
        pytest.param({}, dict(type='CocoDatasett'), 'CocoDatasett is not in', id='unknown data set'),
        pytest.param({}, dict(ann_fil='a.json'), "argument 'ann_fil'", id='argument typo'),
        pytest.param(
            {}, dict(pipeline=[dict(type='LoadImage')]), 'LoadImage is not in', id='unknown transform'
        ),
    ],
)
def test_bad_dataloader_is_an_error(loader, dataset, message, tmp_path):
    with pytest.raises(PreflightError, match=f'cannot build a dataloader: .*{message}'):
        load({**coco(tmp_path / 'data'), **dataset}, **loader)


def test_prefix_of_a_missing_folder_is_an_error(tmp_path):
    dataset = dict(coco(tmp_path / 'data'), data_prefix=dict(img='pictures/'))
    cfg = Config(dict(model=dict(), val_dataloader=dict(dataset=dataset)))
    with pytest.raises(FileNotFoundError, match='no data folder .*pictures'):
        check_files(cfg, ('val_dataloader',))


def save_mask(path, kind):
    labels = np.zeros((6, 8), np.uint8)
    if kind == 'RGB':
        labels = np.stack([labels] * 3, -1)
    elif kind == 'other size':
        labels = labels.T
    elif kind == '16 bit':
        labels = labels.astype(np.uint16) + 300
    Image.fromarray(labels).save(path)
    if kind == 'truncated':
        path.write_bytes(path.read_bytes()[:40])


@pytest.mark.parametrize(
    'kind, message',
    [
        ('other size', r'a\.png has 6 x 8 pixels, its image 8 x 6'),
        ('RGB', r'a\.png has 3 channels'),
        ('16 bit', r'a\.png has label 299 '),
        ('truncated', r'a\.png is broken'),
        ('good', None),
    ],
)
@pytest.mark.parametrize('rotated', [False, True], ids=['', 'EXIF-rotated image'])
def test_bad_mask_is_an_error(kind, message, rotated, tmp_path):
    save_mask(tmp_path / 'a.png', kind)
    exif = Image.Exif()
    exif[0x0112] = 6 if rotated else 1
    Image.new('RGB', (6, 8) if rotated else (8, 6)).save(tmp_path / 'a.jpg', exif=exif)
    dataset = Dataset([str(tmp_path / 'a.png')])
    info = dict(seg_map_path=str(tmp_path / 'a.png'), img_path=str(tmp_path / 'a.jpg'))
    dataset.get_data_info = lambda index: dict(info)
    if message is None:
        PreflightHook().before_run(Runner(dataset))
    else:
        with pytest.raises(PreflightError, match=message):
            PreflightHook().before_run(Runner(dataset))


@pytest.mark.parametrize('kind', ['empty', 'text', 'truncated', 'folder', 'missing'])
def test_unreadable_image_is_named(kind, tmp_path):
    dataset, path = coco(tmp_path / 'data'), tmp_path / 'data/images/a.png'
    content = path.read_bytes()
    path.unlink()
    if kind == 'folder':
        path.mkdir()
    elif kind != 'missing':
        path.write_bytes(dict(empty=b'', text=b'no image', truncated=content[:40])[kind])
    with pytest.raises(BrokenSampleError, match=rf'^{path} is broken: '):
        load(dataset)


def test_paths_with_spaces_and_unicode_are_read(tmp_path):
    assert len(load(coco(tmp_path / 'Größe 雪 [1]'))['data_samples'].gt_instances) == 1
