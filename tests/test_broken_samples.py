"""A broken image or annotation is named and replaced in training, and an error in validation."""

import logging
import pickle
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.evaluator import BaseMetric
from mmengine.model import BaseModel
from PIL import Image
from torch import nn
from torch.utils.data import Dataset

from revcol_mm.training.resumable_data import BrokenSampleError, SeededDataset
from revcol_mm.training.runner import ResumableRunner

NUM_IMAGES = 12


class Images(Dataset):
    """Image files and a number for each, with augmentation."""

    metainfo = {}

    def __init__(self, folder):
        self.files = sorted(Path(folder).iterdir())

    def __len__(self):
        return len(self.files)

    def get_data_info(self, index):
        return dict(img_path=self.files[index])

    def __getitem__(self, index):
        image = np.asarray(Image.open(self.files[index])) * np.random.uniform(0.5, 1)
        return dict(image=torch.from_numpy(image).float())


class Model(BaseModel):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4, 4))

    def forward(self, image, mode='loss'):
        image = torch.stack(image) / 255
        return list(image) if mode == 'predict' else dict(loss=(self.weight * image).square().mean())


class Number(BaseMetric):
    def process(self, data_batch, data_samples):
        self.results.extend(data_samples)

    def compute_metrics(self, results):
        return dict(number=len(results))


@pytest.fixture
def folder(tmp_path):
    """Images, of which 3 and 7 are broken."""
    folder = tmp_path / 'images'
    folder.mkdir()
    for index in range(NUM_IMAGES):
        pixels = np.random.default_rng(index).integers(0, 255, (4, 4), np.uint8)
        Image.fromarray(pixels).save(folder / f'{index:02d}.png')
    for index in (3, 7):
        path = folder / f'{index:02d}.png'
        path.write_bytes(path.read_bytes()[:40])
    return folder


def runner(folder, work_dir, max_iters=18, num_workers=1, resume=False, validation=None, **train):
    loader = dict(batch_size=2, num_workers=num_workers)
    val = {}
    if validation is not None:
        val = dict(
            val_dataloader=dict(loader, dataset=Images(validation), sampler=dict(type='DefaultSampler')),
            val_cfg=dict(type='ValLoop'),
            val_evaluator=[Number()],
        )
    return ResumableRunner(
        model=Model(),
        work_dir=str(work_dir),
        train_dataloader=dict(loader, dataset=Images(folder), sampler=dict(type='InfiniteSampler'), **train),
        train_cfg=dict(type='IterBasedTrainLoop', max_iters=max_iters, val_interval=5),
        optim_wrapper=dict(optimizer=dict(type='AdamW', lr=1e-2)),
        default_hooks=dict(checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=5)),
        randomness=dict(seed=0),
        resume=resume,
        experiment_name=f'{work_dir}-{resume}',
        **val,
    )


def logged(work_dir):
    return ''.join(path.read_text() for path in sorted(work_dir.glob('*/*.log')))


@pytest.mark.parametrize('num_workers', [0, 2])
def test_broken_samples_are_named_once_and_training_goes_on(num_workers, folder, tmp_path):
    runner(folder, tmp_path / 'work', num_workers=num_workers).train()
    lines = re.findall(r'- ERROR - (.*)', logged(tmp_path / 'work'))
    assert len(lines) == 2  # in three passes over the data
    assert {re.search(r'(\d\d)\.png is broken', line)[1] for line in lines} == {'03', '07'}
    assert {re.search(r'left out, (\d+) more may be', line)[1] for line in lines} == {'9', '8'}


@pytest.mark.slow
def test_a_resumed_run_takes_the_same_in_their_place(folder, tmp_path):
    unbroken = runner(folder, tmp_path / 'a')
    unbroken.train()
    runner(folder, tmp_path / 'b', max_iters=10).train()
    resumed = runner(folder, tmp_path / 'b', resume=True, num_workers=0)
    resumed.train()
    assert resumed.iter == unbroken.iter == 18
    assert torch.equal(resumed.model.weight, unbroken.model.weight)


@pytest.mark.parametrize('num_workers', [0, 1])
@pytest.mark.parametrize('max_broken', [0, 1])
def test_one_more_than_allowed_is_an_error_that_names_it(num_workers, max_broken, folder, tmp_path):
    with pytest.raises(BrokenSampleError) as error:
        runner(folder, tmp_path / 'work', num_workers=num_workers, max_broken=max_broken).train()
    limit = f'; max_broken={max_broken} were left out before' if max_broken else ''
    reason = r'UnidentifiedImageError: .* \(\w+\.py:\d+\)'
    assert re.fullmatch(rf'\S+/images/0[37]\.png is broken: {reason}{limit}', str(error.value))


def test_if_every_sample_is_broken_training_ends(folder, tmp_path):
    for path in folder.iterdir():
        path.write_bytes(b'')
    with pytest.raises(BrokenSampleError, match=r'max_broken=10 were left out'):
        runner(folder, tmp_path / 'work').train()


@pytest.mark.parametrize('num_workers', [0, 1])
def test_in_validation_the_first_one_is_an_error(num_workers, folder, tmp_path):
    with pytest.raises(
        BrokenSampleError, match=r'/0[37]\.png is broken: UnidentifiedImageError: cannot identify image file'
    ):
        runner(folder, tmp_path / 'work', num_workers=num_workers, validation=folder).train()


def test_a_replacement_depends_on_the_place_in_the_run_alone(folder):
    first, second = (SeededDataset(Images(folder), max_broken=2) for _ in range(2))
    second[(7, 5, 6)]
    taken = [first[(3, 0, place)]['image'] for place in range(20)]
    assert all(torch.equal(second[(3, 0, place)]['image'], image) for place, image in enumerate(taken))
    assert len({image.sum().item() for image in taken}) > 10


def test_a_sample_that_is_taken_by_its_number_is_not_replaced(folder):
    with pytest.raises(BrokenSampleError, match=r'03\.png'):
        SeededDataset(Images(folder), max_broken=2)[3]


def test_a_negative_number_is_an_error(folder):
    with pytest.raises(ValueError, match='from 0 on, got -1'):
        SeededDataset(Images(folder), max_broken=-1)


class AllBroken(Dataset):
    metainfo = {}

    def __len__(self):
        return 3

    def __getitem__(self, index):
        raise OSError('no such file')


def test_if_all_are_broken_it_ends_with_an_error():
    with pytest.raises(
        BrokenSampleError, match='sample . is broken: OSError: no such file .*; as are all 3 samples'
    ):
        SeededDataset(AllBroken(), max_broken=10)[0, 1]


def test_hooks_that_change_the_pipeline_do(tmp_path):
    """As MMDetection's PipelineSwitchHook does for RTMDet and YOLOX."""
    from mmdet.engine.hooks import PipelineSwitchHook

    class Piped(Dataset):
        metainfo = {}
        pipeline = staticmethod(lambda index: 'old')

        def __len__(self):
            return 1

        def __getitem__(self, index):
            return self.pipeline(index)

    seeded = SeededDataset(Piped())
    loader = torch.utils.data.DataLoader(seeded)
    runner = SimpleNamespace(epoch=3, train_dataloader=loader, logger=logging.getLogger())
    PipelineSwitchHook(3, [lambda index: 'new']).before_train_epoch(runner)
    assert seeded[0] == seeded.dataset[0] == 'new'
    assert pickle.loads(pickle.dumps(SeededDataset([7])))[0] == 7
