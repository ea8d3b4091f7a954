"""Problems with images for classification are reported before a run and by tools/check_data.py."""

import pytest

from revcol_mm.errors import PreflightError

from .small_datasets import SPLITS, classification_config, kinds, start_run


@pytest.fixture
def folders(tmp_path):
    return classification_config(tmp_path)


@pytest.fixture
def lists(folders):
    """The same data set with lists of images instead of folders."""
    for split in SPLITS:
        metainfo = dict(classes=('cat', 'dog'))
        folders[f'{split}_dataloader'].dataset.update(ann_file=f'{split}.txt', metainfo=metainfo)
    return folders


@pytest.mark.parametrize('kind', ['folders', 'lists'])
def test_valid_data_passes(kind, request):
    cfg = request.getfixturevalue(kind)
    start_run(cfg)
    assert not kinds(cfg)


def test_another_order_of_classes_than_of_folders_is_an_error(folders):
    folders.train_dataloader.dataset.classes = ('dog', 'cat')
    message = "label 0 is the class 'dog', but the folder 'cat'; .*'cat', 'dog'"
    with pytest.raises(PreflightError, match=message):
        start_run(folders)


@pytest.mark.parametrize(
    'renamed, message', [('Cat', "0 is 'Cat', but 'cat'"), ('zebra', "0 is 'dog', but 'cat'")]
)
def test_different_folders_of_splits_are_an_error(renamed, message, folders, tmp_path):
    (tmp_path / 'val/cat').rename(tmp_path / 'val' / renamed)
    with pytest.raises(PreflightError, match=rf'\(val\): its label {message} in training'):
        start_run(folders)


@pytest.mark.parametrize('label', [-1, 2])
def test_a_label_beyond_the_classes_is_an_error(label, lists, tmp_path):
    (tmp_path / 'val.txt').write_text(f'cat/0.png 0\ncat/1.png {label}')
    message = rf'1 labels beyond the classes, such as {label} of .*cat/1\.png; .* 0 to 1'
    with pytest.raises(PreflightError, match=message):
        start_run(lists)


def test_a_missing_image_of_a_list_is_an_error(lists, tmp_path):
    (tmp_path / 'val/dog/1.png').unlink()
    with pytest.raises(PreflightError, match=r'1 of 6 images are missing, such as .*dog/1\.png'):
        start_run(lists)
