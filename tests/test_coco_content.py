"""Problems in annotation files in COCO's format are reported before a run and by tools/check_data.py."""

import re

import pytest

from revcol_mm.data.coco_content import check_coco_content
from revcol_mm.errors import PreflightError

from .small_datasets import (
    SPLITS,
    as_corners,
    delete,
    detection_config,
    kinds,
    rename_images,
    rewrite,
    set_in_all,
    set_in_first,
    start_run,
    swap_sizes,
)


def as_fractions(each):
    x, y, width, height = each['bbox']
    return [x / 40, y / 30, width / 40, height / 30]


def folder_in_names(content):
    rename_images(lambda name: f'{name.partition("_")[0]}/{name}')(content)


def test_valid_data_passes(coco, log_warnings):
    start_run(coco)
    assert not log_warnings and not kinds(coco) and not kinds(coco, 'warning')


@pytest.mark.parametrize('split', SPLITS)
@pytest.mark.parametrize(
    'change, kind, message',
    [
        (
            lambda content: content['categories'].reverse(),
            'class order',
            r"label 0 is 'cat' in metainfo\.classes, but 'dog' in the order .*SPLIT\.json.*'dog', 'cat'",
        ),
        (
            set_in_first('categories', name='Cat'),
            'class without a category',
            r"only 1 of 2 classes are categories of its annotation file, not 'cat'; .*'Cat', 'dog'",
        ),
        (
            lambda content: content['categories'].append(dict(id=3, name='dog')),
            'duplicate category name',
            r"SPLIT\.json: 2 categories have the name 'dog'",
        ),
        (
            rename_images('images\\{}'.format),
            'missing image',
            r"\d+ of \d+ images are missing, such as .*s\\SPLIT_0\.png; .* Windows' .*: replace .* by /",
        ),
        (
            folder_in_names,
            'missing image',
            r'are missing, .*; there is .*SPLIT_0\.png: file names must not contain the folder SPLIT',
        ),
        (
            rename_images(lambda name: name.replace('png', 'jpg')),
            'missing image',
            r'_0\.jpg; there is SPLIT_0\.png: suffixes differ',
        ),
        (rename_images(str.upper), 'missing image', r'there is SPLIT_0\.png: upper and lower case differ'),
        (set_in_all('bbox', as_fractions), 'normalized boxes', r'fractions of the image.*convert'),
        (set_in_all('bbox', as_corners), 'boxes as corners', r'seem to be \[x1, y1, x2, y2\].*convert'),
        (
            swap_sizes,
            'image size',
            r'SPLIT_0\.png has \d+ x \d+ pixels, but \d+ x \d+ in the annotation file, and \d+ more .*EXIF',
        ),
        (
            delete('annotations', 'area'),
            'no area',
            r"SPLIT\.json: \d+ annotations without 'area', such as number 0; add 'area' to each",
        ),
        (
            set_in_all('bbox', lambda each: [each['bbox'][0], 1, 0, 5]),
            'empty boxes',
            r'less than a pixel, such as \[2, 1, 0, 5\] of annotation 1 in SPLIT_0\.png',
        ),
        (set_in_all('bbox', [1, float('nan'), 2, 5]), 'non-finite boxes', 'boxes with NaN'),
        (set_in_all('bbox', lambda each: [500, 1, 9, 5]), 'boxes outside', 'outside of their image'),
        (set_in_all('bbox', lambda each: [30, 10, 60, 5]), 'boxes beyond', 'reach beyond'),
        (set_in_all('area', 0), 'no area', 'whose area is not positive'),
        (set_in_all('iscrowd', 1), 'crowds', "'iscrowd': 0 for single objects"),
        (
            set_in_all('image_id', lambda each: str(each['image_id'])),
            'unknown image_id',
            r"\d+ annotations whose image_id is not the id of any .*, such as '0'; use the ids .*, such as 0",
        ),
        (
            set_in_first('annotations', segmentation=[]),
            'no segmentation',
            r'objects without a mask .* annotation 1 of SPLIT_0\.png; draw their masks',
        ),
        (delete('annotations', 'segmentation'), 'no segmentation', 'without a mask'),
        (
            set_in_first('annotations', segmentation=[1, 1, 5, 1, 5, 5]),
            'malformed segmentation',
            r'lists of polygons, \[\[x, y',
        ),
        (
            set_in_all('segmentation', [[1, 1, 5, 5]]),
            'polygon of less than 3 points',
            'less than 3 points.*; remove',
        ),
        (
            set_in_first('annotations', segmentation=dict(size=[28, 40], counts='abc')),
            'RLE size',
            r'RLE segmentations whose size is not',
        ),
        (lambda content: content.update(images=3), 'malformed list', 'is not a list of JSON objects'),
        (lambda content: content['images'].clear(), 'no images', r'SPLIT\.json: it has no images; add'),
        (lambda content: content['categories'].clear(), 'no categories', 'it has no categories; add'),
        (delete('images', 'id'), 'no id', "images without 'id', such as number 0"),
        (delete('images', 'file_name'), 'no file_name', "images without 'file_name'"),
        (delete('annotations', 'image_id'), 'no image_id', "annotations without 'image_id'"),
        (set_in_first('images', width='40'), 'no size', r"SPLIT_0\.png with '40' x"),
        (set_in_first('images', height=0), 'no size', r'SPLIT_0\.png with \d+ x 0'),
        (set_in_first('annotations', bbox=[1, 1, 3]), 'malformed box', '1 boxes that are not 4 numbers'),
        (set_in_first('annotations', bbox='1 1 3 3'), 'malformed box', '1 boxes that are not 4 numbers'),
        (set_in_first('annotations', bbox=list('1133')), 'malformed box', '1 boxes that are not 4 numbers'),
        (set_in_first('annotations', area='16'), 'malformed area', "'area' .* is not a number"),
        (set_in_first('images', id=1), 'duplicate id of images', '2 images have the id 1; give each'),
        (set_in_first('annotations', id=2), 'duplicate id of annotations', '2 annotations have the id 2'),
        (set_in_first('categories', id=2), 'duplicate id of categories', '2 categories have the id 2'),
        (
            set_in_first('annotations', category_id=7),
            'unknown category_id',
            r'SPLIT\.json: 1 annotations whose category_id is not .*, such as 7; use the ids .*, such as 1',
        ),
    ],
)
def test_bad_annotation_file_is_an_error(change, kind, message, split, coco, tmp_path):
    rewrite(tmp_path, split, change)
    with pytest.raises(PreflightError, match=message.replace('SPLIT', split)) as error:
        start_run(coco)
    assert len(str(error.value).splitlines()) <= 10
    assert kind in kinds(coco)


@pytest.mark.parametrize(
    'change, message',
    [
        (
            set_in_first('annotations', bbox=[3, 3, 0, 5]),
            '1 boxes whose .* less than a pixel, such as .*; they are left out, 1 of 28 objects in all',
        ),
        (set_in_first('annotations', bbox=[38, 3, 9, 5]), '1 boxes that reach beyond their image'),
        (set_in_first('annotations', iscrowd=1), "1 objects with 'iscrowd' .*; models do not learn them"),
        (set_in_first('annotations', ignore=1), '1 objects with .* or .ignore.'),
        (set_in_first('annotations', segmentation=[[1, 1, 5, 5]]), '1 segmentations with a polygon of'),
        (set_in_all('category_id', 1), 'train.json: 1 classes without an object, such as dog'),
        (set_in_first('images', file_name='train_1.png'), '1 files that are listed as several images'),
        (
            set_in_first('annotations', image_id=99),
            '1 annotations whose image_id is not the id of any of the images, such as 99; they are left out',
        ),
    ],
)
def test_few_unusable_objects_are_a_warning(change, message, coco, tmp_path, log_warnings):
    rewrite(tmp_path, 'train', change)
    start_run(coco)
    assert len(log_warnings) == 1 and re.search(message, log_warnings[0])
    assert not kinds(coco) and len(kinds(coco, 'warning')) == 1


@pytest.mark.parametrize(
    'values',
    [
        dict(bbox=[1, 1, 0, 4]),
        dict(bbox=[1, 1, -3, 4]),
        dict(bbox=[100, 100, 3, 4]),
        dict(bbox=[float('nan'), 1, 3, 4]),
        dict(image_id=99),
    ],
)
def test_objects_reported_as_skipped_are_not_loaded(values, coco, tmp_path):
    rewrite(tmp_path, 'train', set_in_first('annotations', **values))
    train, _ = start_run(coco)
    assert len(train.dataset[0]['data_samples'].gt_instances) == 1


@pytest.mark.parametrize(
    'text, reason',
    [
        ('{"images": [', 'JSONDecodeError'),
        ('<html>404</html>', 'JSONDecodeError'),
        ('[1]', 'AssertionError'),
        ('{"images": 3, "annotations": [7]}', 'TypeError'),
    ],
)
def test_a_file_that_is_no_annotation_file_is_named(text, reason, coco, tmp_path):
    (tmp_path / 'train.json').write_text(text)
    with pytest.raises(
        PreflightError, match=rf'^cannot build a dataloader: .*{tmp_path}/train\.json: {reason}'
    ):
        start_run(coco)


def test_paths_with_spaces_and_unicode_are_read(tmp_path):
    folder = tmp_path / 'Größe 雪 [1]'
    folder.mkdir()
    train, _ = start_run(detection_config(folder))
    assert len(train.dataset[0]['data_samples'].gt_instances) == 2


def test_masks_are_not_required_for_boxes(coco, tmp_path):
    for split in SPLITS:
        rewrite(tmp_path, split, delete('annotations', 'segmentation'))
        coco[f'{split}_dataloader'].dataset.pipeline[1].with_mask = False
    coco.val_evaluator.metric = 'bbox'
    start_run(coco)


def test_a_short_polygon_is_an_error_where_masks_are_evaluated(coco, tmp_path):
    rewrite(tmp_path, 'val', set_in_first('annotations', segmentation=[[1, 1, 5, 5]]))
    with pytest.raises(PreflightError, match='1 segmentations with a polygon of less than 3 points'):
        start_run(coco)
    assert not kinds(coco, 'warning')  # reported once, not also with the severity in training


def test_no_annotations_are_an_error(coco, tmp_path):
    rewrite(tmp_path, 'train', lambda content: content.pop('annotations'))
    with pytest.raises(PreflightError, match=r'2 classes without an object, such as cat; annotate'):
        start_run(coco)


def test_segments_of_a_panoptic_file_are_checked_as_objects():
    segment = dict(id=7, category_id=1, bbox=[1, 1, 4, 4], area=16, iscrowd=0)
    content = dict(
        images=[dict(id=1, file_name='a.jpg', height=6, width=8)],
        annotations=[dict(image_id=1, file_name='a.png', segments_info=[segment])],
        categories=[dict(id=1, name='x', isthing=1)],
    )
    file = check_coco_content('a.json', content)
    assert not list(file.findings) and not list(file.box_findings) and file.num_objects == {1: 1}
    segment.update(bbox=[0.1, 0.1, 0.5, 0.5], category_id=2)
    file = check_coco_content('a.json', content)
    assert [each.kind for each in file.findings] == ['unknown category_id']
    assert [each.kind for each in file.box_findings] == ['normalized boxes']
