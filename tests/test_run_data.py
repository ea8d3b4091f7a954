"""Data that cannot be built or read, images that splits share, and classes that differ between splits."""

import shutil

import pytest
from mmengine.registry import DefaultScope

from revcol_mm.errors import PreflightError
from revcol_mm.training.runner import ResumableRunner
from revcol_mm.training.seeded_dataset import BrokenSampleError

from .small_datasets import SPLITS, kinds, rename_images, rewrite, set_in_first, start_run


def test_missing_images_up_to_max_broken_are_a_warning(coco, tmp_path, log_warnings):
    coco.train_dataloader.dataset = dict(
        type='SeededDataset', dataset=coco.train_dataloader.dataset, max_broken=1
    )
    (tmp_path / 'train/train_3.png').unlink()
    start_run(coco)
    (warning,) = log_warnings
    assert 'train_3.png; ' in warning and 'leaves out up to 1 (max_broken)' in warning
    (tmp_path / 'train/train_5.png').write_bytes(b'')
    with pytest.raises(PreflightError, match=r'train_3\.png.*\n.*train_5\.png is broken'):
        start_run(coco)


def test_a_missing_image_that_the_data_set_filters_out_is_ignored(coco, tmp_path):
    image = dict(id=77, file_name='empty.png', width=40, height=30)
    rewrite(tmp_path, 'train', lambda content: content['images'].append(image))
    with pytest.raises(PreflightError, match=r'empty\.png'):
        start_run(coco)
    coco.train_dataloader.dataset.filter_cfg = dict(filter_empty_gt=True)
    start_run(coco)


def test_an_image_of_training_in_validation_is_a_warning(coco, tmp_path, log_warnings):
    for split in SPLITS:
        rewrite(tmp_path, split, rename_images(f'{split}/{{}}'.format))
        coco[f'{split}_dataloader'].dataset.data_prefix = dict(img='')
    start_run(coco)
    assert not log_warnings
    rewrite(tmp_path, 'val', set_in_first('images', file_name='train/train_0.png', width=40, height=30))
    start_run(coco)
    (warning,) = log_warnings
    assert f'(val): 1 images that are also in training, such as {tmp_path}/train/train_0.png' in warning


def test_identical_images_are_found_by_reading_all_files(coco, tmp_path):
    shutil.copy(tmp_path / 'train/train_0.png', tmp_path / 'train/train_1.png')
    assert kinds(coco, 'warning') == {'identical images'}
    for index in range(12):
        shutil.copy(tmp_path / 'train/train_0.png', tmp_path / f'val/val_{index}.png')
    assert {'identical images', 'leak'} <= kinds(coco, 'warning')


def test_other_classes_in_validation_are_an_error(coco, tmp_path):
    rewrite(tmp_path, 'val', lambda content: content['categories'].reverse())
    coco.val_dataloader.dataset.metainfo.classes = ('dog', 'cat')
    with pytest.raises(PreflightError, match=r"\(val\): its label 0 is 'dog', but 'cat' in training"):
        start_run(coco)


def test_classes_as_a_string_are_an_error(coco):
    coco.train_dataloader.dataset.metainfo.classes = 'cat'
    with pytest.raises(PreflightError, match=r"the text 'cat', whose letters .*; write \('cat',\)"):
        start_run(coco)


def test_a_filter_that_leaves_no_images_is_an_error(coco):
    coco.train_dataloader.dataset.update(filter_cfg=dict(min_size=99), serialize_data=True)
    with pytest.raises(PreflightError, match=r"no images are left: check filter_cfg=\{'min_size': 99\}"):
        start_run(coco)
    assert 'cannot build' in kinds(coco)


@pytest.mark.parametrize(
    'place, value, message',
    [
        ('batch_size', 0, 'batch_size'),
        ('num_workers', -1, 'num_workers'),
        ('prefetch_factor', -1, 'prefetch_factor'),
        ('sampler.type', 'NoSampler', 'NoSampler is not in'),
        ('dataset.type', 'CocoDatasett', 'CocoDatasett is not in'),
        ('dataset.ann_fil', 'a.json', "argument 'ann_fil'"),
        ('dataset.pipeline.0.type', 'LoadImage', 'LoadImage is not in'),
    ],
)
def test_a_dataloader_that_cannot_be_built_is_an_error(place, value, message, coco):
    coco.merge_from_dict({f'train_dataloader.{place}': value})
    with pytest.raises(PreflightError, match=f'cannot build a dataloader: .*{message}'):
        start_run(coco)


@pytest.mark.parametrize('kind', ['empty', 'text', 'truncated', 'folder', 'missing'])
def test_an_image_that_cannot_be_read_is_named(kind, coco, tmp_path):
    path = tmp_path / 'val/val_0.png'
    content = path.read_bytes()
    path.unlink()
    if kind == 'folder':
        path.mkdir()
    elif kind != 'missing':
        path.write_bytes(dict(empty=b'', text=b'no image', truncated=content[:40])[kind])
    with DefaultScope.overwrite_default_scope('mmdet'):
        dataset = ResumableRunner.build_dataloader(coco.val_dataloader).dataset
    with pytest.raises(BrokenSampleError, match=rf'^{path} is broken: '):
        dataset[0]
