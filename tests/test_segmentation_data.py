"""Problems with semantic masks are reported before a run and by tools/check_data.py."""

import re
import shutil

import numpy as np
import pytest
from mmengine.registry import DefaultScope
from PIL import Image
from torch import nn

from revcol_mm.data.findings import report
from revcol_mm.data.run_checks import check_run
from revcol_mm.data.splits import splits_of
from revcol_mm.errors import PreflightError
from revcol_mm.preflight.check_data import check_data
from revcol_mm.training.runner import ResumableRunner

from .small_datasets import NUM_IMAGES, SPLITS, kinds, relabel, save_noise, segmentation_config, start_run


@pytest.fixture
def masks(tmp_path):
    return segmentation_config(tmp_path)


def test_valid_data_passes(masks, log_warnings):
    start_run(masks)
    assert not [each for each in log_warnings if 'prefix' not in each]  # MMEngine's, about IoUMetric
    assert not kinds(masks) and not kinds(masks, 'warning')


@pytest.mark.parametrize('split', SPLITS)
@pytest.mark.parametrize(
    'change, kind, message',
    [
        (
            lambda labels: np.where(labels == 2, 3, labels),
            'mask label',
            r'_\d+\.png has label 3, and \d+ more like this; there are 3 classes, 0 to 2, and 255 is ignored',
        ),
        (
            lambda labels: np.stack([labels] * 3, -1),
            'mask channels',
            r'_\d+\.png has 3 channels, but a mask has one',
        ),
        (
            lambda labels: labels.T.copy(),
            'mask size',
            r'_\d+\.png has \d+ x \d+ pixels, its image \d+ x \d+',
        ),
    ],
)
def test_bad_mask_is_an_error(change, kind, message, split, masks, tmp_path):
    relabel(tmp_path, split, change)
    with pytest.raises(PreflightError, match=split + message):
        start_run(masks)
    assert kind in kinds(masks)


@pytest.mark.parametrize('rotated', [False, True])
def test_masks_have_the_size_of_images_as_displayed(rotated, masks, tmp_path):
    for path in (tmp_path / 'images/train').iterdir():
        exif = Image.Exif()
        exif[0x0112] = 6 if rotated else 1  # viewers turn the first to the right
        Image.open(path).transpose(Image.Transpose.ROTATE_90).save(path, exif=exif)
    if rotated:
        start_run(masks)
    else:
        with pytest.raises(PreflightError, match=r'_0\.png has 40 x 30 pixels, its image 30 x 40'):
            start_run(masks)


def test_labels_are_checked_after_reduce_zero_label(masks, tmp_path):
    masks.train_dataloader.dataset.reduce_zero_label = True
    start_run(masks)
    relabel(tmp_path, 'train', lambda labels: labels.astype(np.uint16) + 300)
    with pytest.raises(PreflightError, match=r'_0\.png has label 554 \(after reduce_zero_label\)'):
        start_run(masks)


def test_a_broken_mask_is_an_error(masks, tmp_path):
    path = tmp_path / 'masks/val/val_0.png'
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(PreflightError, match=f'{path} is broken'):
        start_run(masks)


@pytest.mark.parametrize('split', SPLITS)
def test_missing_mask_is_an_error(split, masks, tmp_path):
    (tmp_path / f'masks/{split}/{split}_3.png').unlink()
    message = rf'1 of {NUM_IMAGES[split]} masks are missing, such as .*{split}_3\.png; add the files'
    with pytest.raises(PreflightError, match=message):
        start_run(masks)
    assert 'missing mask' in kinds(masks)


def test_an_image_with_a_valid_header_is_found_broken_by_decoding(masks, tmp_path):
    path = tmp_path / 'images/val/val_7.jpg'
    path.write_bytes(path.read_bytes()[:-100])
    start_run(masks)
    (finding,) = [each for each in check_data(masks, workers=2)[1] if each.kind == 'broken image']
    assert f'{path} is broken: ' in finding.line


def test_foreground_of_255_is_an_error(masks, tmp_path):
    relabel(tmp_path, 'train', lambda labels: np.where(labels == 0, 0, 255).astype(np.uint8))
    with pytest.raises(PreflightError, match='14 masks have only the class 0, and 255, which is ignored'):
        start_run(masks)


def test_a_class_without_pixels_is_a_warning(masks, tmp_path):
    relabel(tmp_path, 'val', lambda labels: np.where(labels == 2, 1, labels))
    assert kinds(masks, 'warning') == {'class in no mask'} and not kinds(masks)


def test_another_ignored_label_than_255_passes_if_all_parts_agree(masks, tmp_path):
    for split in SPLITS:
        relabel(tmp_path, split, lambda labels: np.where(labels == 255, 11, labels))
    with pytest.raises(PreflightError, match=r'_0\.png has label 11'):
        start_run(masks)
    for part in (masks.train_dataloader.dataset, masks.val_dataloader.dataset, masks.val_evaluator):
        part.ignore_index = 11
    start_run(masks)
    assert not kinds(masks)
    masks.val_evaluator.ignore_index = 255
    message = 'val: .* has ignore_index=11, but IoUMetric has ignore_index=255; set all to the same'
    with pytest.raises(PreflightError, match=message):
        start_run(masks)


def test_different_ignored_labels_of_data_and_model_are_an_error(masks):
    head = nn.Identity()
    head.num_classes, head.ignore_index = 3, 11
    with DefaultScope.overwrite_default_scope('mmseg'):
        dataset = ResumableRunner.build_dataloader(masks.train_dataloader).dataset
    splits = splits_of('train', dataset, model=nn.ModuleDict(dict(decode_head=head)))
    message = 'ignore_index=255, but decode_head of the model has ignore_index=11; set all to the same'
    with pytest.raises(PreflightError, match=message):
        report(check_run(splits))


def test_labels_are_checked_after_label_map(masks, monkeypatch):
    from mmseg.datasets import BaseSegDataset

    metainfo = dict(classes=('sky', 'road', 'car'), palette=[[0] * 3] * 3)
    monkeypatch.setattr(BaseSegDataset, 'METAINFO', metainfo)
    for split in SPLITS:
        masks[f'{split}_dataloader'].dataset.metainfo = dict(classes=('road', 'sky'), palette=[[0] * 3] * 2)
    start_run(masks)  # 'car', label 2, is mapped to 255


def test_a_suffix_that_no_image_has_is_an_error(masks):
    masks.train_dataloader.dataset.img_suffix = '.png'
    message = r"no file in .*/train ends in '\.png' \(img_suffix\); there is train_0\.jpg \(train_dataloader"
    with pytest.raises(FileNotFoundError, match=message):
        start_run(masks)


def test_unused_files_are_reported(masks, tmp_path):
    save_noise(tmp_path / 'images/train/other.png', (40, 30), 7)
    (tmp_path / 'images/val/val_3.jpg').unlink()
    found = {each.kind: each.examples for each in check_data(masks)[1]}
    assert found == {
        'unused image': [f'{tmp_path}/images/train/other.png'],
        'unused mask': [f'{tmp_path}/masks/val/val_3.png'],
    }


@pytest.mark.parametrize(
    'lines, message',
    [
        (['val_0', 'val_0'], '1 images that are listed more than once'),
        (['val_0.jpg'], r'val_0\.jpg\.jpg; there is val_0\.jpg: suffixes differ'),
        (['val_0', 'nowhere'], r'1 of 2 images are missing, such as .*nowhere\.jpg'),
    ],
)
def test_a_list_of_images_is_compared_with_the_folder(lines, message, masks, tmp_path, log_warnings):
    (tmp_path / 'val.txt').write_text('\n'.join(lines))
    masks.val_dataloader.dataset.ann_file = 'val.txt'
    try:
        start_run(masks)
    except PreflightError as error:
        log_warnings.append(str(error))
    assert re.search(message, '\n'.join(log_warnings))


@pytest.mark.parametrize('writes', [False, True])
def test_predictions_that_would_overwrite_each_other_are_reported(writes, masks, tmp_path, log_warnings):
    for kind in ('images', 'masks'):
        shutil.copytree(tmp_path / kind / 'val', tmp_path / kind / 'val/night')
    if writes:
        masks.val_evaluator.output_dir = str(tmp_path / 'out')
        with pytest.raises(PreflightError, match='12 names that several images have.*; rename images'):
            start_run(masks)
    else:
        start_run(masks)
        assert any('12 names that several images have' in each for each in log_warnings)
