"""Files that a config names, and what PreflightHook checks, are checked before a run."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel

from revcol_mm import RevCol
from revcol_mm.preflight import PreflightHook, check_files

from .bare_runner import Dataset, Runner, read

LOADERS = ('train_dataloader', 'val_dataloader')


@pytest.fixture
def ade(tmp_path):
    """A config with one image and mask in each split."""
    cfg = read('mask2former_revcol_b_ade20k.py')
    for split in ('training', 'validation'):
        for kind, suffix in (('images', 'jpg'), ('annotations', 'png')):
            folder = tmp_path / kind / split
            folder.mkdir(parents=True)
            Image.fromarray(np.zeros((8, 8), np.uint8)).save(folder / f'a.{suffix}')
    cfg.train_dataloader.dataset.data_root = cfg.val_dataloader.dataset.data_root = str(tmp_path)
    cfg.model.backbone.init_cfg = None
    return cfg


def test_a_missing_data_root_is_reported_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError) as error:
        check_files(read('mask2former_revcol_b_ade20k.py'), LOADERS)
    assert str(error.value) == (
        'no data folder data/ade/ADEChallengeData2016 (train_dataloader.dataset, val_dataloader.dataset)'
    )


def test_a_missing_checkpoint_is_an_error_unless_the_run_resumes(ade):
    check_files(ade, LOADERS)
    ade.load_from = 'nowhere.pth'
    with pytest.raises(FileNotFoundError, match='nowhere.pth.*--cfg-options load_from=None'):
        check_files(ade, LOADERS)
    ade.resume = True
    check_files(ade, LOADERS)
    ade.update(resume=False, load_from='s3://bucket/weights.pth')  # left to MMEngine
    check_files(ade, LOADERS)


@pytest.mark.parametrize(
    'dataset', [dict(data_root='s3://bucket/ade'), dict(type='mmpretrain.CIFAR10', data_root='data/nowhere')]
)
def test_data_that_are_remote_or_will_be_downloaded_are_not_missing(dataset, ade):
    ade.train_dataloader.dataset = dataset
    check_files(ade, LOADERS)
    if 'type' in dataset:
        ade.train_dataloader.dataset.download = False
        with pytest.raises(FileNotFoundError, match='no data folder data/nowhere'):
            check_files(ade, LOADERS)


def test_missing_and_empty_folders_are_errors(ade, tmp_path):
    (tmp_path / 'images/training/a.jpg').unlink()
    (tmp_path / 'annotations/validation').rename(tmp_path / 'annotations/valid')
    with pytest.raises(FileNotFoundError) as error:
        check_files(ade, LOADERS)
    empty, missing = str(error.value).splitlines()
    assert empty.startswith(f'data folder {tmp_path}/images/training is empty')
    assert missing.startswith(f'no data folder {tmp_path}/annotations/validation')


def test_data_of_a_wrapped_data_set_are_checked(ade):
    inner = ade.train_dataloader.dataset
    inner.data_root = 'nowhere'
    ade.train_dataloader.dataset = dict(type='RepeatDataset', times=2, dataset=inner)
    with pytest.raises(FileNotFoundError, match=r'nowhere \(train_dataloader\.dataset\.dataset\)'):
        check_files(ade, LOADERS)


def test_several_initialisations_of_a_backbone_are_checked(ade):
    ade.model.backbone.init_cfg = [
        dict(type='Kaiming', layer='Conv2d'),
        dict(type='Pretrained', checkpoint='nowhere.pth'),
    ]
    with pytest.raises(FileNotFoundError, match='nowhere.pth'):
        check_files(ade, LOADERS)


@pytest.mark.parametrize('content', [None, ''])
def test_a_missing_or_empty_annotation_file_is_an_error(ade, tmp_path, content):
    ade.train_dataloader.dataset.ann_file = 'instances.json'
    if content is not None:
        (tmp_path / 'instances.json').write_text(content)
    with pytest.raises(FileNotFoundError, match=r'instances\.json'):
        check_files(ade, LOADERS)


def test_missing_pretrained_weights_are_an_error_in_training(ade):
    ade.model.backbone.init_cfg = dict(type='Pretrained', checkpoint='pretrained/revcol_b.pth')
    with pytest.raises(FileNotFoundError, match=r'pretrained/revcol_b\.pth.*https://.*init_cfg=None'):
        check_files(ade, LOADERS)
    check_files(ade, ('val_dataloader',))  # testing loads a whole checkpoint


def test_an_empty_data_set_is_an_error():
    with pytest.raises(ValueError, match='somewhere has no images'):
        PreflightHook().before_run(Runner(Dataset([])))


def test_categories_that_are_not_classes_are_a_warning(tmp_path, log_messages):
    images_of = {1: [7], 2: [], 3: [7, 8], 4: []}
    Image.fromarray(np.ones((1, 1), np.uint8)).save(tmp_path / 'a.png')
    dataset = Dataset([str(tmp_path / 'a.png')], cat_ids=[1, 2, 3], cat_img_map=images_of)
    PreflightHook().before_run(Runner(dataset))
    assert log_messages == [
        'Dataset at somewhere: 1 categories of its annotation file are not among the classes; their objects '
        'are left out'
    ]


@pytest.mark.parametrize('save_memory', [True, False])
@pytest.mark.parametrize(
    'wrap',
    [nn.DataParallel, lambda model: FullyShardedDataParallel(model, device_id=torch.device('cpu'))],
    ids=['DataParallel', 'FullyShardedDataParallel'],
)
def test_wrappers_that_hide_parameters_are_refused_for_reversible_training(wrap, save_memory, process_group):
    arch = dict(channels=(8, 16), layers=(1, 1), num_columns=2)
    runner = Runner(Dataset([]))
    runner._train_loop = None
    runner.model = wrap(RevCol(arch, out_indices=(0, 1), save_memory=save_memory))
    if save_memory:
        with pytest.raises(ValueError, match='save_memory=True .*DataParallel, which hides'):
            PreflightHook().before_run(runner)
    else:
        PreflightHook().before_run(runner)
