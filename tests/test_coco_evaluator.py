"""Evaluators that read other annotations than the dataloader, or annotations that they cannot evaluate."""

import re
import shutil

import pytest
import torch

from revcol_mm.errors import PreflightError

from .small_datasets import (
    NUM_IMAGES,
    SIZES,
    delete,
    kinds,
    rewrite,
    set_in_first,
    start_run,
    swap_sizes,
)


def bbox_map(metric):
    """Evaluate predictions that equal the annotations of validation."""
    width, height = SIZES['val']
    boxes = torch.tensor([[2.0, 3, 12, 11], [20, 9, 32, 20]])
    masks = torch.zeros(2, height, width, dtype=torch.bool)
    for mask, (left, top, right, bottom) in zip(masks, boxes.int().tolist()):
        mask[top:bottom, left:right] = True
    instances = dict(bboxes=boxes, scores=torch.ones(2), labels=torch.tensor([0, 1]), masks=masks)
    metric.dataset_meta = dict(classes=('cat', 'dog'))
    for index in range(NUM_IMAGES['val']):
        metric.process({}, [dict(img_id=index, ori_shape=(height, width), pred_instances=instances)])
    return metric.evaluate(NUM_IMAGES['val'])['coco/bbox_mAP']


def test_objects_without_iscrowd_are_evaluated_as_single_ones(coco, tmp_path, log_warnings):
    rewrite(tmp_path, 'val', delete('annotations', 'iscrowd'))
    metric = start_run(coco)[-1].metrics[0][1]
    assert log_warnings == [
        f"{tmp_path}/val.json: 24 annotations without 'iscrowd'; they are evaluated as single objects, like "
        "'iscrowd': 0"
    ]
    assert kinds(coco, 'warning') == {'no iscrowd'}
    assert bbox_map(metric) == 1


def test_an_object_with_id_0_is_a_warning_because_pycocotools_never_finds_it(coco, tmp_path, log_warnings):
    rewrite(tmp_path, 'val', set_in_first('annotations', id=0))
    metric = start_run(coco)[-1].metrics[0][1]
    assert log_warnings == [
        f'{tmp_path}/val.json: 1 annotations have the id 0, which pycocotools counts as never found; number '
        'annotations from 1'
    ]
    assert bbox_map(metric) < 1  # if this fails, pycocotools was fixed, and the warning can be removed


def remove_last_image(content):
    content['images'] = content['images'][:-1]
    content['annotations'] = [each for each in content['annotations'] if each['image_id'] < 11]


@pytest.mark.parametrize(
    'ann_file, change, message',
    [
        ('nowhere.json', None, r'no annotation file .*nowhere\.json \(val_evaluator\.ann_file\)'),
        (
            'train.json',
            None,
            r'val_evaluator: .*train\.json has other images \(14\) than .*val\.json \(12\).*; set val_eval',
        ),
        ('other.json', swap_sizes, r'val_evaluator: .*other\.json has other images'),
        ('other.json', remove_last_image, r'other\.json has other images \(11\)'),
        (
            'other.json',
            lambda content: content['categories'].reverse(),
            r"val_evaluator: label 0 is 'cat' in metainfo\.classes, but 'dog' .*other\.json",
        ),
        ('other.json', lambda content: content['categories'].pop(0), 'annotations whose category_id is not'),
        ('other.json', delete('annotations', 'area'), "without 'area'"),
        ('other.json', '{', r'cannot build an evaluator: .*other\.json: JSON'),
        ('other.json', lambda content: content['annotations'].clear(), 'has no objects'),
    ],
)
def test_other_annotations_than_those_of_the_dataloader_are_an_error(
    ann_file, change, message, coco, tmp_path
):
    shutil.copy(tmp_path / 'val.json', tmp_path / 'other.json')
    if isinstance(change, str):
        (tmp_path / 'other.json').write_text(change)
    elif change:
        rewrite(tmp_path, 'other', change)
    coco.val_evaluator.ann_file = str(tmp_path / ann_file)
    with pytest.raises((PreflightError, FileNotFoundError), match=message):
        start_run(coco)
    assert kinds(coco)


def test_a_copy_of_the_annotations_passes(coco, tmp_path):
    shutil.copy(tmp_path / 'val.json', tmp_path / 'other.json')
    coco.val_evaluator = [dict(coco.val_evaluator, ann_file=str(tmp_path / 'other.json'))]
    start_run(coco)


def test_images_that_are_not_loaded_are_a_warning(coco, log_warnings):
    coco.val_dataloader.dataset.indices = 5
    start_run(coco)
    (warning,) = log_warnings
    assert re.search(r'val\.json has 12 images, but .* loads only 5; the others count', warning)
