"""Data as people have them: what is wrong is told in one line before a run, and by tools/check_data.py.

Each case is a small data set that is whole, and one change to it.
"""

import json
import logging
import os
import re
import shutil

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import DefaultScope
from PIL import Image
from torch import nn

from revcol_mm.data.coco_file import CocoFile
from revcol_mm.data.findings import report
from revcol_mm.data.overlap import check_run
from revcol_mm.data.splits import splits_of
from revcol_mm.errors import PreflightError
from revcol_mm.preflight import PreflightHook, check_files
from revcol_mm.preflight.doctor import check_data
from revcol_mm.training.runner import ResumableRunner

from .subprocesses import run
from .test_preflight import Runner

SPLITS = ('train', 'val')
SIZES = dict(train=(40, 30), val=(36, 28))  # width and height
NUM_IMAGES = dict(train=14, val=12)
MODEL = dict(type='BaseDataPreprocessor')  # none to compare with


def start(cfg):
    """What the start of a run does with data, up to the first iteration."""
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        check_files(cfg, tuple(f'{name}_dataloader' for name in SPLITS))
        splits, runner = [], ResumableRunner.__new__(ResumableRunner)  # without a model
        for name in SPLITS:
            loader = ResumableRunner.build_dataloader(cfg[f'{name}_dataloader'])
            configs = cfg.get(f'{name}_evaluator')
            evaluator = runner.build_evaluator(configs) if configs else None
            splits += splits_of(name, loader.dataset, evaluator, configs)
        report(check_run(splits))
        return splits


def kinds(cfg, severity='error'):
    """What tools/check_data.py finds."""
    return {finding.kind for finding in check_data(cfg)[1] if finding.severity == severity}


@pytest.fixture
def warnings():
    """Warnings in the log."""
    messages = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: messages.append(record.getMessage())
    logger = MMLogger.get_current_instance()
    logger.addHandler(handler)
    yield messages
    logger.removeHandler(handler)


# Detection.


def polygon(x, y, width, height):
    return [[x, y, x + width, y, x + width, y + height, x, y + height]]


def coco_content(split):
    width, height = SIZES[split]
    images = [
        dict(id=index, file_name=f'{split}_{index}.png', width=width, height=height)
        for index in range(NUM_IMAGES[split])
    ]
    boxes = [[2, 3, 10, 8], [20, 9, 12, 11]]
    annotations = [
        dict(
            id=2 * image['id'] + i + 1,
            image_id=image['id'],
            category_id=i + 1,
            bbox=box,
            area=box[2] * box[3],
            iscrowd=0,
            segmentation=polygon(*box),
        )
        for image in images
        for i, box in enumerate(boxes)
    ]
    categories = [dict(id=1, name='cat'), dict(id=2, name='dog')]
    return dict(images=images, annotations=annotations, categories=categories)


def noise(path, size, seed):
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def coco(tmp_path):
    """A config of a detector's data, whole; its files are in the test's folder."""
    for number, split in enumerate(SPLITS):
        content = coco_content(split)
        (tmp_path / split).mkdir()
        for image in content['images']:
            noise(tmp_path / split / image['file_name'], SIZES[split], 100 * number + image['id'])
        (tmp_path / f'{split}.json').write_text(json.dumps(content))

    def loader(split):
        dataset = dict(
            type='CocoDataset',
            data_root=str(tmp_path),
            ann_file=f'{split}.json',
            data_prefix=dict(img=f'{split}/'),
            metainfo=dict(classes=('cat', 'dog')),
            test_mode=split != 'train',
            serialize_data=False,
            pipeline=[
                dict(type='LoadImageFromFile'),
                dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
                dict(type='PackDetInputs'),
            ],
        )
        return dict(batch_size=1, num_workers=0, sampler=dict(type='DefaultSampler'), dataset=dataset)

    return Config(
        dict(
            default_scope='mmdet',
            model=MODEL,
            train_dataloader=loader('train'),
            val_dataloader=loader('val'),
            val_evaluator=dict(
                type='CocoMetric', ann_file=str(tmp_path / 'val.json'), metric=['bbox', 'segm']
            ),
        )
    )


def rewrite(folder, split, change):
    """Change the content of an annotation file."""
    path = folder / f'{split}.json'
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def to_all(key, value):
    """A change of a field of all objects; of a function's, made of the object."""

    def change(content):
        for each in content['annotations']:
            each[key] = value(each) if callable(value) else value

    return change


def to_first(kind, **values):
    return lambda content: content[kind][0].update(values)


def without(kind, key):
    def change(content):
        for each in content[kind]:
            del each[key]

    return change


def names(change):
    def rename(content):
        for each in content['images']:
            each['file_name'] = change(each['file_name'])

    return rename


def swap_sizes(content):
    for each in content['images']:
        each['width'], each['height'] = each['height'], each['width']


def corners(each):
    x, y, width, height = each['bbox']
    return [x, y, x + width, y + height]


def shares(each):
    return [each['bbox'][0] / 40, each['bbox'][1] / 30, each['bbox'][2] / 40, each['bbox'][3] / 30]


def test_data_that_are_whole_pass(coco, warnings):
    start(coco)
    assert not warnings and not kinds(coco) and not kinds(coco, 'warning')


@pytest.mark.parametrize('split', SPLITS)
@pytest.mark.parametrize(
    'change, kind, message',
    [
        pytest.param(
            lambda content: content['categories'].reverse(),
            'order of classes',
            r"label 0 is 'cat' by metainfo\.classes, but 'dog' by the order .*SPLIT\.json.*'dog', 'cat'",
            id='categories in another order',
        ),
        pytest.param(
            to_first('categories', name='Cat'),
            'class without a category',
            r"of 2 classes only 1 are categories of its annotation file, not 'cat'; .*'Cat', 'dog'",
            id='upper case',
        ),
        pytest.param(
            lambda content: content['categories'].append(dict(id=3, name='dog')),
            'categories of one name',
            r"SPLIT\.json: 2 categories have the name 'dog'",
            id='two categories of one name',
        ),
        pytest.param(
            names('images\\{}'.format),
            'missing image',
            r"images of \d+ that are not there, such as .*s\\SPLIT_0\.png; .*Windows' separators: write /",
            id='separators of Windows',
        ),
        pytest.param(
            names('SPLIT/{}'.format),
            'missing image',
            r'that are not there, .*; there is .*SPLIT_0\.png: SPLIT is in the name',
            id='folder named twice',
        ),
        pytest.param(
            names(lambda name: name.replace('png', 'jpg')),
            'missing image',
            r'_0\.jpg; there is SPLIT_0\.png: suffixes differ',
            id='another suffix',
        ),
        pytest.param(
            names(str.upper),
            'missing image',
            r'there is SPLIT_0\.png: upper and lower',
            id='upper-case names',
        ),
        pytest.param(to_all('bbox', shares), 'boxes from 0 to 1', r'shares of the image.*convert', id='0..1'),
        pytest.param(
            to_all('bbox', corners), 'corners for boxes', r'\[x1, y1, x2, y2\], it seems.*convert', id='xyxy'
        ),
        pytest.param(
            swap_sizes,
            'image size',
            r'SPLIT_0\.png has \d+ x \d+ pixels, by the annotation file \d+ x \d+, and \d+ more.*EXIF',
            id='width and height swapped',
        ),
        pytest.param(
            without('annotations', 'area'),
            'no area',
            r"SPLIT\.json: \d+ annotations without 'area', such as number 0; write 'area' to each",
            id='no area',
        ),
        pytest.param(
            to_all('bbox', lambda each: [each['bbox'][0], 1, 0, 5]),
            'empty boxes',
            r'boxes of less than a pixel, such as \[2, 1, 0, 5\] of annotation 1 in SPLIT_0\.png',
            id='no width',
        ),
        pytest.param(
            to_all('bbox', lambda each: [1, float('nan'), 2, 5]), 'NaN in boxes', 'no numbers', id='NaN'
        ),
        pytest.param(
            to_all('bbox', lambda each: [500, 1, 9, 5]),
            'boxes outside',
            'outside of their image',
            id='outside',
        ),
        pytest.param(
            to_all('bbox', lambda each: [30, 10, 60, 5]),
            'boxes beyond',
            'reach beyond',
            id='of larger images',
        ),
        pytest.param(to_all('area', 0), 'no area', 'whose area is not positive', id='area of 0'),
        pytest.param(to_all('iscrowd', 1), 'crowds', "'iscrowd': 0 for single objects", id='all are crowds'),
        pytest.param(
            to_all('image_id', lambda each: str(each['image_id'])),
            'image_id of none',
            r"\d+ annotations whose image_id is none of the images, such as '0'; ids of images are such as 0",
            id='ids as text',
        ),
        pytest.param(
            to_first('annotations', segmentation=[]),
            'no segmentation',
            r'objects without a mask .* annotation 1 of SPLIT_0\.png; draw their masks',
            id='empty segmentation',
        ),
        pytest.param(
            without('annotations', 'segmentation'), 'no segmentation', 'without a mask', id='no segmentation'
        ),
        pytest.param(
            to_first('annotations', segmentation=[1, 1, 5, 1, 5, 5]),
            'malformed segmentation',
            r'lists of polygons, \[\[x, y',
            id='polygon without its list',
        ),
        pytest.param(
            to_all('segmentation', [[1, 1, 5, 5]]),
            'polygon of less than 3 points',
            'less than 3 points.*; take out',
            id='lines',
        ),
        pytest.param(
            to_first('annotations', segmentation=dict(size=[28, 40], counts='abc')),
            'RLE of another size',
            r'whose size is not',
            id='RLE of another size',
        ),
    ],
)
def test_a_bad_annotation_file_is_an_error_before_the_run(change, kind, message, split, coco, tmp_path):
    rewrite(tmp_path, split, lambda content: change(content))
    if 'named twice' in os.environ['PYTEST_CURRENT_TEST']:
        rewrite(tmp_path, split, names(lambda name: name.replace('SPLIT/', f'{split}/')))
    with pytest.raises(PreflightError, match=message.replace('SPLIT', split)) as error:
        start(coco)
    assert len(str(error.value).splitlines()) <= 10
    assert kind in kinds(coco)


@pytest.mark.parametrize(
    'change, message',
    [
        pytest.param(
            to_first('annotations', bbox=[3, 3, 0, 5]),
            '1 boxes of less than a pixel, such as .*; they are left out, 1 of 28 in all',
            id='empty box',
        ),
        pytest.param(
            to_first('annotations', bbox=[38, 3, 9, 5]), '1 boxes that reach beyond their image', id='beyond'
        ),
        pytest.param(
            to_first('annotations', iscrowd=1), "1 objects with 'iscrowd' .*; a model does not", id='crowd'
        ),
        pytest.param(to_first('annotations', ignore=1), '1 objects with .* or .ignore.', id='ignored object'),
        pytest.param(
            to_first('annotations', segmentation=[[1, 1, 5, 5]]),
            '1 segmentations with polygons of',
            id='line',
        ),
        pytest.param(
            to_all('category_id', 1), 'train.json: 1 classes without an object, such as dog', id='one class'
        ),
        pytest.param(
            to_first('images', file_name='train_1.png'), '1 files that are several images', id='image twice'
        ),
    ],
)
def test_what_mmdetection_leaves_out_here_and_there_is_a_warning(change, message, coco, tmp_path, warnings):
    rewrite(tmp_path, 'train', change)
    start(coco)
    assert len(warnings) == 1 and re.search(message, warnings[0])
    assert not kinds(coco) and len(kinds(coco, 'warning')) == 1


def test_boxes_without_a_segmentation_pass_where_no_masks_are_used(coco, tmp_path):
    for split in SPLITS:
        rewrite(tmp_path, split, without('annotations', 'segmentation'))
        coco[f'{split}_dataloader'].dataset.pipeline[1].with_mask = False
    coco.val_evaluator.metric = 'bbox'
    start(coco)


def test_a_line_is_an_error_where_masks_are_evaluated(coco, tmp_path):
    rewrite(tmp_path, 'val', to_first('annotations', segmentation=[[1, 1, 5, 5]]))
    with pytest.raises(PreflightError, match='1 segmentations with polygons of less than 3 points'):
        start(coco)
    assert not kinds(coco, 'warning')  # that training leaves it out


def predictions(split):
    """What a detector that finds everything gives to a metric."""
    for index in range(NUM_IMAGES[split]):
        width, height = SIZES[split]
        boxes = torch.tensor([[2.0, 3, 12, 11], [20, 9, 32, 20]])
        masks = torch.zeros(2, height, width, dtype=torch.bool)
        for mask, (left, top, right, bottom) in zip(masks, boxes.int().tolist()):
            mask[top:bottom, left:right] = True
        yield dict(
            img_id=index,
            ori_shape=(height, width),
            pred_instances=dict(bboxes=boxes, scores=torch.ones(2), labels=torch.tensor([0, 1]), masks=masks),
        )


def test_objects_without_iscrowd_are_evaluated_as_single_ones(coco, tmp_path, warnings):
    rewrite(tmp_path, 'val', without('annotations', 'iscrowd'))
    metric = start(coco)[-1].metrics[0][1]
    assert warnings == [
        f"{tmp_path}/val.json: 24 annotations without 'iscrowd'; they are evaluated as single objects, as "
        'with 0'
    ]
    assert kinds(coco, 'warning') == {'no iscrowd'}
    metric.dataset_meta = dict(classes=('cat', 'dog'))
    metric.process({}, list(predictions('val')))
    assert metric.evaluate(NUM_IMAGES['val'])['coco/bbox_mAP'] == 1


def test_an_object_of_id_0_which_pycocotools_never_finds_is_told_of(coco, tmp_path, warnings):
    rewrite(tmp_path, 'val', to_first('annotations', id=0))
    metric = start(coco)[-1].metrics[0][1]
    assert warnings == [
        f'{tmp_path}/val.json: 1 annotations have the id 0, which pycocotools counts as never found; number '
        'them from 1'
    ]
    metric.dataset_meta = dict(classes=('cat', 'dog'))
    metric.process({}, list(predictions('val')))
    assert metric.evaluate(NUM_IMAGES['val'])['coco/bbox_mAP'] < 1  # else the warning is no longer needed


def other_images(content):
    content['images'] = content['images'][:-1]
    content['annotations'] = [each for each in content['annotations'] if each['image_id'] < 11]


@pytest.mark.parametrize(
    'ann_file, change, message',
    [
        pytest.param(
            'nowhere.json',
            None,
            r'no annotation file .*nowhere\.json \(val_evaluator\.ann_file\)',
            id='missing',
        ),
        pytest.param(
            'train.json',
            None,
            r'val_evaluator: .*train\.json has other images \(14\) than .*val\.json \(12\).*; set val_eval',
            id='of training',
        ),
        pytest.param(
            'other.json', swap_sizes, r'val_evaluator: .*other\.json has other images', id='of the same ids'
        ),
        pytest.param('other.json', other_images, r'other\.json has other images \(11\)', id='fewer images'),
        pytest.param(
            'other.json',
            lambda content: content['categories'].reverse(),
            r"val_evaluator: label 0 is 'cat' by metainfo\.classes, but 'dog' .*other\.json",
            id='categories in another order',
        ),
        pytest.param(
            'other.json',
            lambda content: content['categories'].pop(0),
            r'annotations whose category_id is none',
            id='fewer categories',
        ),
        pytest.param('other.json', without('annotations', 'area'), "without 'area'", id='no area'),
        pytest.param(
            'other.json', '{', r'cannot build an evaluator: .*other\.json: JSON', id='JSON cut short'
        ),
        pytest.param(
            'other.json', lambda content: content['annotations'].clear(), 'has no objects', id='no objects'
        ),
    ],
)
def test_an_evaluator_of_other_data_than_the_loader_s_is_an_error(ann_file, change, message, coco, tmp_path):
    shutil.copy(tmp_path / 'val.json', tmp_path / 'other.json')
    if isinstance(change, str):
        (tmp_path / 'other.json').write_text(change)
    elif change:
        rewrite(tmp_path, 'other', change)
    coco.val_evaluator.ann_file = str(tmp_path / ann_file)
    with pytest.raises((PreflightError, FileNotFoundError), match=message):
        start(coco)
    assert kinds(coco)


def test_an_evaluator_of_a_copy_of_the_loader_s_file_passes(coco, tmp_path):
    shutil.copy(tmp_path / 'val.json', tmp_path / 'other.json')
    coco.val_evaluator = [dict(coco.val_evaluator, ann_file=str(tmp_path / 'other.json'))]
    start(coco)


def test_images_that_are_not_loaded_count_in_metrics_and_are_told_of(coco, warnings):
    coco.val_dataloader.dataset.indices = 5
    start(coco)
    assert len(warnings) == 1 and re.search(r'val\.json has 12 images, of which .* loads 5', warnings[0])


def test_missing_images_that_training_may_leave_out_are_a_warning(coco, tmp_path, warnings):
    coco.train_dataloader.dataset = dict(
        type='SeededDataset', dataset=coco.train_dataloader.dataset, max_broken=1
    )
    (tmp_path / 'train/train_3.png').unlink()
    start(coco)
    assert len(warnings) == 1 and re.search(r'train_3\.png; .*leaves out up to 1 \(max_broken\)', warnings[0])
    (tmp_path / 'train/train_5.png').write_bytes(b'')
    with pytest.raises(PreflightError, match=r'train_3\.png.*\n.*train_5\.png is broken'):
        start(coco)


def test_a_missing_image_that_a_data_set_leaves_out_does_no_harm(coco, tmp_path):
    rewrite(tmp_path, 'train', lambda content: content['images'].append(dict(content['images'][0], id=77)))
    rewrite(tmp_path, 'train', lambda content: content['images'][-1].update(file_name='empty.png'))
    with pytest.raises(PreflightError, match=r'empty\.png'):
        start(coco)
    coco.train_dataloader.dataset.filter_cfg = dict(filter_empty_gt=True)
    start(coco)


def test_an_image_of_training_in_validation_is_told_of(coco, tmp_path, warnings):
    for split in SPLITS:
        rewrite(tmp_path, split, names(f'{split}/{{}}'.format))
        coco[f'{split}_dataloader'].dataset.data_prefix = dict(img='')
    start(coco)
    assert not warnings
    rewrite(tmp_path, 'val', to_first('images', file_name='train/train_0.png', width=40, height=30))
    start(coco)
    assert len(warnings) == 1 and re.search(
        r'\(val\): 1 images that are in training, too, such as .*train/train_0\.png', warnings[0]
    )


def test_a_copy_of_a_picture_is_found_by_reading_all(coco, tmp_path):
    shutil.copy(tmp_path / 'train/train_0.png', tmp_path / 'train/train_1.png')
    assert kinds(coco, 'warning') == {'same picture twice'}
    for index in range(12):
        shutil.copy(tmp_path / 'train/train_0.png', tmp_path / f'val/val_{index}.png')
    assert {'same picture twice', 'leak'} <= kinds(coco, 'warning')


def test_other_classes_in_validation_than_in_training_are_an_error(coco, tmp_path):
    for split in ('val',):
        rewrite(tmp_path, split, lambda content: content['categories'].reverse())
        coco[f'{split}_dataloader'].dataset.metainfo.classes = ('dog', 'cat')
    with pytest.raises(PreflightError, match=r"\(val\): its label 0 is the class 'dog', in training 'cat'"):
        start(coco)


def test_classes_that_are_a_text_are_an_error(coco):
    coco.train_dataloader.dataset.metainfo.classes = 'cat'
    with pytest.raises(PreflightError, match=r"the text 'cat', whose letters .*; write \('cat',\)"):
        start(coco)


def test_a_data_set_without_objects_is_an_error(coco, tmp_path):
    rewrite(tmp_path, 'train', lambda content: content.pop('annotations'))
    with pytest.raises(PreflightError, match=r'2 classes without an object, such as cat; annotate'):
        start(coco)


def test_what_cannot_be_built_is_a_finding_beside_what_can_be_told_without_it(coco, tmp_path):
    rewrite(tmp_path, 'train', to_first('images', id=1))
    (tmp_path / 'train/train_5.png').unlink()
    (tmp_path / 'train/train_6.png').write_bytes(b'')
    coco.val_dataloader.dataset.data_root = str(tmp_path / 'nowhere')
    found = kinds(coco)
    assert {'images of one id', 'missing image', 'broken image', 'missing data', 'cannot build'} <= found


def test_panoptic_files_are_checked(tmp_path):
    segment = dict(id=7, category_id=1, bbox=[1, 1, 4, 4], area=16, iscrowd=0)
    content = dict(
        images=[dict(id=1, file_name='a.jpg', height=6, width=8)],
        annotations=[dict(image_id=1, file_name='a.png', segments_info=[segment])],
        categories=[dict(id=1, name='x', isthing=1)],
    )
    file = CocoFile('a.json', content)
    assert not list(file.findings) and not list(file.box_findings) and file.num_objects == {1: 1}
    segment.update(bbox=[0.1, 0.1, 0.5, 0.5], category_id=2)
    file = CocoFile('a.json', content)
    assert [each.kind for each in file.findings] == ['category_id of none']
    assert [each.kind for each in file.box_findings] == ['boxes from 0 to 1']


def test_a_filter_that_leaves_no_images_is_named(coco):
    coco.train_dataloader.dataset.update(filter_cfg=dict(min_size=99), serialize_data=True)
    with pytest.raises(PreflightError, match=r"no images are left by filter_cfg=\{'min_size': 99\}"):
        start(coco)
    assert 'cannot build' in kinds(coco)


# Segmentation.


@pytest.fixture
def masks(tmp_path):
    """A config of a segmentor's data, whole; its files are in the test's folder."""
    for number, split in enumerate(SPLITS):
        for kind in ('images', 'masks'):
            (tmp_path / kind / split).mkdir(parents=True)
        for index in range(NUM_IMAGES[split]):
            width, height = SIZES[split]
            noise(tmp_path / f'images/{split}/{split}_{index}.jpg', SIZES[split], 100 * number + index)
            labels = np.zeros((height, width), np.uint8)
            labels[:9], labels[9:12], labels[-1] = 1, 2, 255
            Image.fromarray(labels).save(tmp_path / f'masks/{split}/{split}_{index}.png')

    def loader(split):
        dataset = dict(
            type='BaseSegDataset',
            data_root=str(tmp_path),
            data_prefix=dict(img_path=f'images/{split}', seg_map_path=f'masks/{split}'),
            metainfo=dict(classes=('sky', 'road', 'car'), palette=[[0, 0, 0]] * 3),
            serialize_data=False,
            pipeline=[
                dict(type='LoadImageFromFile'),
                dict(type='LoadAnnotations'),
                dict(type='PackSegInputs'),
            ],
        )
        return dict(batch_size=1, num_workers=0, sampler=dict(type='DefaultSampler'), dataset=dataset)

    return Config(
        dict(
            default_scope='mmseg',
            model=MODEL,
            train_dataloader=loader('train'),
            val_dataloader=loader('val'),
            val_evaluator=dict(type='IoUMetric'),
        )
    )


def relabel(folder, split, change):
    for path in (folder / 'masks' / split).iterdir():
        Image.fromarray(change(np.array(Image.open(path)))).save(path)


def test_masks_that_are_whole_pass(masks, warnings):
    start(masks)
    assert not [each for each in warnings if 'prefix' not in each]
    assert not kinds(masks) and not kinds(masks, 'warning')


@pytest.mark.parametrize('split', SPLITS)
@pytest.mark.parametrize(
    'change, kind, message',
    [
        pytest.param(
            lambda folder, split: (folder / f'masks/{split}/{split}_3.png').unlink(),
            'missing mask',
            r'1 masks of \d+ that are not there, such as .*SPLIT_3\.png; put them there',
            id='mask missing',
        ),
        pytest.param(
            lambda folder, split: relabel(folder, split, lambda labels: np.where(labels == 2, 3, labels)),
            'mask label',
            r'SPLIT_\d+\.png has label 3, and \d+ more alike; there are 3 classes, 0 to 2, and 255 is',
            id='label beyond the classes',
        ),
        pytest.param(
            lambda folder, split: relabel(folder, split, lambda labels: np.stack([labels] * 3, -1)),
            'mask channels',
            r'SPLIT_\d+\.png has 3 channels, a mask has one',
            id='colours',
        ),
        pytest.param(
            lambda folder, split: relabel(folder, split, lambda labels: labels.T.copy()),
            'mask size',
            r'SPLIT_\d+\.png has \d+ x \d+ pixels, its image \d+ x \d+',
            id='another size',
        ),
    ],
)
def test_a_bad_mask_is_an_error_before_the_run(change, kind, message, split, masks, tmp_path):
    change(tmp_path, split)
    with pytest.raises(PreflightError, match=message.replace('SPLIT', split)):
        start(masks)
    assert kind in kinds(masks)


def test_an_image_that_only_decoding_shows_to_be_broken_is_found_by_reading_all(masks, tmp_path):
    path = tmp_path / 'images/val/val_7.jpg'
    path.write_bytes(path.read_bytes()[:-100])
    start(masks)
    findings = [each for each in check_data(masks, workers=2)[1] if each.kind == 'broken image']
    assert len(findings) == 1 and f'{path} is broken: ' in findings[0].line


def test_foreground_of_255_is_an_error(masks, tmp_path):
    relabel(tmp_path, 'train', lambda labels: np.where(labels == 0, 0, 255).astype(np.uint8))
    with pytest.raises(PreflightError, match='14 masks have only the class 0, and 255, which is left out'):
        start(masks)


def test_classes_that_are_in_no_mask_are_told_of(masks, tmp_path):
    relabel(tmp_path, 'val', lambda labels: np.where(labels == 2, 1, labels))
    assert kinds(masks, 'warning') == {'class in no mask'} and not kinds(masks)


def ignore(cfg, label, *keys):
    for key in keys:
        cfg.merge_from_dict({key: label})


ALL = ('train_dataloader.dataset', 'val_dataloader.dataset', 'val_evaluator')


def test_another_ignored_label_than_255_passes_if_all_agree(masks, tmp_path):
    for split in SPLITS:
        relabel(tmp_path, split, lambda labels: np.where(labels == 255, 11, labels))
    with pytest.raises(PreflightError, match=r'_0\.png has label 11'):
        start(masks)
    ignore(masks, 11, *(f'{key}.ignore_index' for key in ALL))
    start(masks)
    assert not kinds(masks)


@pytest.mark.parametrize('left', ALL)
def test_ignored_labels_that_differ_are_an_error(left, masks):
    ignore(masks, 11, *(f'{key}.ignore_index' for key in ALL if key != left))
    if left.startswith('train'):
        head = nn.Identity()
        head.num_classes, head.ignore_index = 3, 11
        with DefaultScope.overwrite_default_scope('mmseg'):
            dataset = ResumableRunner.build_dataloader(masks.train_dataloader).dataset
        splits = splits_of('train', dataset, model=nn.ModuleDict(dict(decode_head=head)))
        with pytest.raises(
            PreflightError,
            match='ignore_index=255, but decode_head of the model has ignore_index=11; set',
        ):
            report(check_run(splits))
    else:
        both = '11, but IoUMetric .*255' if left == 'val_evaluator' else '255, but IoUMetric .*11'
        with pytest.raises(PreflightError, match=f'val: .* has ignore_index={both}; set both to one label'):
            start(masks)


def test_what_pads_masks_writes_the_ignored_label(masks):
    ignore(masks, 11, 'train_dataloader.dataset.ignore_index')
    masks.train_dataloader.dataset.pipeline.insert(2, dict(type='RandomRotate', prob=0.5, degree=9))
    with pytest.raises(
        PreflightError, match='train: .* has ignore_index=11, but RandomRotate has seg_pad_val=255; set both'
    ):
        start(masks)


def test_reduce_zero_label_writes_255_whatever_is_ignored(masks):
    for split in SPLITS:
        masks[f'{split}_dataloader'].dataset.update(reduce_zero_label=True, ignore_index=11)
    masks.val_evaluator.ignore_index = 11
    with pytest.raises(PreflightError, match='reduce_zero_label=True turns labels into 255; set its'):
        start(masks)


def test_labels_of_classes_that_are_left_out_are_mapped_before_they_are_checked(masks, monkeypatch):
    from mmseg.datasets import BaseSegDataset

    monkeypatch.setattr(
        BaseSegDataset, 'METAINFO', dict(classes=('sky', 'road', 'car'), palette=[[0] * 3] * 3)
    )
    for split in SPLITS:
        masks[f'{split}_dataloader'].dataset.metainfo = dict(classes=('road', 'sky'), palette=[[0] * 3] * 2)
    start(masks)  # label 2 is mapped to 255


def test_a_suffix_that_no_image_has_is_named(masks):
    masks.train_dataloader.dataset.img_suffix = '.png'
    message = r"no file in .*/train ends in '\.png' \(img_suffix\), there is train_0\.jpg \(train_dataloader"
    with pytest.raises(FileNotFoundError, match=message):
        start(masks)


def test_files_that_are_not_taken_are_told_of(masks, tmp_path):
    noise(tmp_path / 'images/train/other.png', (40, 30), 7)
    (tmp_path / 'images/val/val_3.jpg').unlink()
    found = {each.kind: each for each in check_data(masks)[1]}
    assert found.keys() == {'image of no use', 'mask of no use'}
    assert found['image of no use'].examples == [f'{tmp_path}/images/train/other.png']
    assert found['mask of no use'].examples == [f'{tmp_path}/masks/val/val_3.png']


@pytest.mark.parametrize(
    'lines, message',
    [
        (['val_0', 'val_0'], '1 images that are listed more than once'),
        (['val_0.jpg'], r'val_0\.jpg\.jpg; there is val_0\.jpg: suffixes differ'),
        (['val_0', 'nowhere'], r'1 images of 2 that are not there, such as .*nowhere\.jpg'),
    ],
)
def test_a_list_of_images_is_compared_with_the_folder(lines, message, masks, tmp_path, warnings):
    (tmp_path / 'val.txt').write_text('\n'.join(lines))
    masks.val_dataloader.dataset.ann_file = 'val.txt'
    try:
        start(masks)
    except PreflightError as error:
        warnings.append(str(error))
    assert re.search(message, '\n'.join(warnings))


@pytest.mark.parametrize('writes', [False, True])
def test_predictions_that_would_overwrite_each_other_are_named(writes, masks, tmp_path, warnings):
    for kind in ('images', 'masks'):
        shutil.copytree(tmp_path / kind / 'val', tmp_path / kind / 'val/night')
    if writes:
        masks.val_evaluator.output_dir = str(tmp_path / 'out')
        with pytest.raises(PreflightError, match='12 names that several images have.*; rename images'):
            start(masks)
    else:
        start(masks)
        assert any('12 names that several images have, whose' in each for each in warnings)


def test_files_of_two_splits_are_told_of_once(masks, tmp_path):
    masks.test_dataloader = masks.val_dataloader
    masks.test_evaluator = dict(type='IoUMetric', ignore_index=7)
    (tmp_path / 'masks/val/val_3.png').unlink()
    findings = [each for each in check_data(masks)[1] if each.severity == 'error']
    assert [each.kind for each in findings] == ['missing mask', 'ignore_index']


# Classification.


@pytest.fixture
def folders(tmp_path):
    """A config of a classifier's data, whole; its files are in the test's folder."""
    for number, split in enumerate(SPLITS):
        for label, name in enumerate(('cat', 'dog')):
            (tmp_path / split / name).mkdir(parents=True)
            for index in range(3):
                noise(tmp_path / split / name / f'{index}.png', (8, 6), 100 * number + 10 * label + index)
        lines = [
            f'{name}/{index}.png {label}' for label, name in enumerate(('cat', 'dog')) for index in range(3)
        ]
        (tmp_path / f'{split}.txt').write_text('\n'.join(lines))

    def loader(split):
        pipeline = [dict(type='LoadImageFromFile'), dict(type='PackInputs')]
        dataset = dict(type='CustomDataset', data_root=str(tmp_path), data_prefix=split, pipeline=pipeline)
        return dict(batch_size=1, num_workers=0, sampler=dict(type='DefaultSampler'), dataset=dataset)

    return Config(
        dict(
            default_scope='mmpretrain',
            model=MODEL,
            train_dataloader=loader('train'),
            val_dataloader=loader('val'),
            val_evaluator=dict(type='Accuracy'),
        )
    )


@pytest.fixture
def lists(folders):
    """The same by lists of files in place of folders."""
    for split in SPLITS:
        folders[f'{split}_dataloader'].dataset.update(
            ann_file=f'{split}.txt', metainfo=dict(classes=('cat', 'dog'))
        )
    return folders


@pytest.mark.parametrize('kind', ['folders', 'lists'])
def test_images_to_classify_that_are_whole_pass(kind, request):
    cfg = request.getfixturevalue(kind)
    start(cfg)
    assert not kinds(cfg)


def test_folders_in_another_order_than_the_classes_are_an_error(folders):
    folders.train_dataloader.dataset.classes = ('dog', 'cat')
    with pytest.raises(
        PreflightError, match="label 0 is 'dog' by its classes, but the folder 'cat'; .*'cat', 'dog'"
    ):
        start(folders)


def test_a_folder_that_only_one_split_has_is_an_error(folders, tmp_path):
    (tmp_path / 'val/cat').rename(tmp_path / 'val/Cat')
    with pytest.raises(PreflightError, match=r"\(val\): its label 0 is the class 'Cat', in training 'cat'"):
        start(folders)
    (tmp_path / 'val/Cat').rename(tmp_path / 'val/zebra')
    with pytest.raises(PreflightError, match=r"its label 0 is the class 'dog', in training 'cat'"):
        start(folders)


@pytest.mark.parametrize('label', [-1, 2])
def test_a_label_that_is_no_class_is_an_error(label, lists, tmp_path):
    (tmp_path / 'val.txt').write_text(f'cat/0.png 0\ncat/1.png {label}')
    with pytest.raises(
        PreflightError,
        match=rf'1 labels that are none of the classes, such as {label} of .*cat/1\.png; .* 0 to 1',
    ):
        start(lists)


def test_a_listed_image_that_is_not_there_is_an_error(lists, tmp_path):
    (tmp_path / 'val/dog/1.png').unlink()
    with pytest.raises(PreflightError, match=r'1 images of 6 that are not there, such as .*dog/1\.png'):
        start(lists)


# The tool.


def test_the_tool_prints_a_table_and_writes_json(coco, tmp_path, call_tool):
    rewrite(tmp_path, 'train', to_first('annotations', iscrowd=1))
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


def test_the_tool_says_in_one_line_what_it_cannot_read(tmp_path, call_tool):
    _, error = call_tool('tools/check_data.py', tmp_path / 'nowhere.py')
    assert error == f'error: no config {tmp_path}/nowhere.py'


def test_a_run_does_not_keep_what_it_read_of_annotation_files(coco):
    with DefaultScope.overwrite_default_scope('mmdet'):
        dataset = ResumableRunner.build_dataloader(coco.train_dataloader).dataset
    assert list(dataset.annotation_files) == [coco.train_dataloader.dataset.data_root + '/train.json']
    runner = Runner(dataset, num_classes=2)
    PreflightHook().before_run(runner)
    assert not dataset.annotation_files


def test_training_stops_before_the_first_iteration(sample_data, tmp_path):
    data = tmp_path / 'coco'
    shutil.copytree(sample_data / 'coco', data)
    path = data / 'annotations/instances_train2017.json'
    content = json.loads(path.read_text())
    to_all('bbox', corners)(content)
    path.write_text(json.dumps(content))
    options = [f'{split}_dataloader.dataset.data_root={data}/' for split in ('train', 'val', 'test')]
    options.append(f'val_evaluator.ann_file={data}/annotations/instances_val2017.json')
    config = 'configs/cascade_mask_rcnn_revcol_nano_sample.py'
    printed = run(
        'tools/train.py', config, '--work-dir', tmp_path / 'work', '--cfg-options', *options, expect=1
    )
    assert printed.splitlines()[-1].startswith(f'error: {path}: ') and '[x1, y1, x2, y2], it seems' in printed
    assert 'Traceback' not in printed and 'Iter(train)' not in printed
