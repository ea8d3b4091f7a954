"""Broken images are named and replaced in training, and are an error in validation."""

import logging
import multiprocessing
import pickle
import re
import traceback
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset

from revcol_mm.training import worker_shutdown
from revcol_mm.training.runner import ResumableRunner
from revcol_mm.training.seeded_dataset import BrokenSampleError, SeededDataset

from .checkpoints import assert_same_weights
from .tiny_runs import make


class Images(Dataset):
    """Image files with random augmentation."""

    metainfo = {}

    def __init__(self, folder):
        self.files = sorted(Path(folder).iterdir())

    def __len__(self):
        return len(self.files)

    def get_data_info(self, index):
        return dict(img_path=self.files[index])

    def __getitem__(self, index):
        image = np.asarray(Image.open(self.files[index])) * np.random.uniform(0.5, 1)
        return dict(inputs=torch.tensor([image.mean()]).float())


@pytest.fixture
def folder(tmp_path):
    """12 images, of which 3 and 7 are broken."""
    folder = tmp_path / 'images'
    folder.mkdir()
    for index in range(12):
        path = folder / f'{index:02d}.png'
        pixels = np.random.default_rng(index).integers(0, 255, (4, 4), np.uint8)
        Image.fromarray(pixels).save(path)
        if index in (3, 7):
            path.write_bytes(path.read_bytes()[:40])
    return folder


def runner(
    folder, work_dir, max_iters=18, num_workers=1, resume=False, validates=False, max_broken=10, **loader
):
    loader = dict(loader, batch_size=2, num_workers=num_workers, dataset=Images(folder))
    validation = dict(scores=range(20), val_dataloader=dict(loader, sampler=dict(type='DefaultSampler')))
    return make(
        work_dir,
        max_iters,
        checkpoint=dict(interval=5),
        param_scheduler=[],  # the same for all lengths
        train_dataloader=dict(loader, sampler=dict(type='InfiniteSampler'), max_broken=max_broken),
        resume=resume,
        **(validation if validates else {}),
    )


@contextmanager
def broken_sample_error():
    """Expect a BrokenSampleError, and let go of the data loader in its traceback, whose workers then end."""
    with pytest.raises(BrokenSampleError) as error:
        yield error
    traceback.clear_frames(error.tb)


@pytest.mark.parametrize('num_workers', [0, 2])
def test_broken_samples_are_logged_once_and_training_continues(num_workers, folder, tmp_path):
    runner(folder, tmp_path / 'work', num_workers=num_workers).train()
    (log,) = tmp_path.glob('work/*/*.log')
    lines = re.findall(r'- ERROR - (.*)', log.read_text())
    assert len(lines) == 2  # in three passes over the data
    assert {re.search(r'(\d\d)\.png is broken', line)[1] for line in lines} == {'03', '07'}
    assert {re.search(r'replaced by another sample, (\d+) more', line)[1] for line in lines} == {'9', '8'}


@pytest.mark.parametrize('persistent_workers', [False, True])
def test_workers_end_with_the_loop(persistent_workers, folder, tmp_path):
    (folder / '03.png').unlink()
    (folder / '07.png').unlink()
    training = runner(
        folder, tmp_path / 'work', validates=True, num_workers=2, persistent_workers=persistent_workers
    )
    training.train()
    assert multiprocessing.active_children() == []
    assert training.val() == {'score': 9}
    assert multiprocessing.active_children() == []


def test_workers_keep_their_own_initialisation(folder, monkeypatch):
    loader = dict(dataset=Images(folder), num_workers=1, sampler=dict(type='DefaultSampler'))
    built = ResumableRunner.build_dataloader(dict(loader, disable_subprocess_warning=True), seed=0)
    init = built.worker_init_fn.keywords['init']
    assert init.keywords['disable_subprocess_warning']
    called = []
    monkeypatch.setattr(worker_shutdown, 'signal', SimpleNamespace(signal=lambda *_: None, SIG_IGN=None))
    monkeypatch.setattr(worker_shutdown, 'Thread', lambda **_: SimpleNamespace(start=lambda: None))
    worker_shutdown.shield_worker(3, None, called.append)
    assert called == [3]


@pytest.mark.slow
def test_resumed_run_uses_the_same_replacements(folder, tmp_path):
    unbroken = runner(folder, tmp_path / 'unbroken').train()
    runner(folder, tmp_path / 'resumed', max_iters=10).train()
    resumed = runner(folder, tmp_path / 'resumed', resume=True, num_workers=0)
    assert_same_weights(resumed.train().state_dict(), unbroken.state_dict())
    assert resumed.iter == 18


@pytest.mark.parametrize('num_workers', [0, 1])
@pytest.mark.parametrize('max_broken', [0, 1])
def test_sample_beyond_max_broken_is_an_error_that_names_the_file(num_workers, max_broken, folder, tmp_path):
    with broken_sample_error() as error:
        runner(folder, tmp_path / 'work', num_workers=num_workers, max_broken=max_broken).train()
    limit = f'; max_broken={max_broken} others were replaced before' if max_broken else ''
    reason = r'UnidentifiedImageError: cannot identify image file .* \(\w+\.py:\d+\)'
    assert re.fullmatch(rf'\S+/images/0[37]\.png is broken: {reason}{limit}', str(error.value))


def test_training_ends_if_all_samples_are_broken(folder, tmp_path):
    for path in folder.iterdir():
        path.write_bytes(b'')
    with broken_sample_error() as error:
        runner(folder, tmp_path / 'work').train()
    assert 'max_broken=10 others were replaced before' in str(error.value)


@pytest.mark.parametrize('num_workers', [0, 1])
def test_broken_sample_in_validation_is_an_error(num_workers, folder, tmp_path):
    with broken_sample_error() as error:
        runner(folder, tmp_path / 'work', num_workers=num_workers, validates=True).train()
    assert re.search(r'/0[37]\.png is broken: UnidentifiedImageError: cannot identify', str(error.value))


def test_replacement_depends_only_on_the_seed_of_the_sample(folder):
    first, second = (SeededDataset(Images(folder), max_broken=2) for _ in range(2))
    second[(7, 5, 6)]
    taken = [first[(3, 0, place)]['inputs'] for place in range(20)]
    assert all(torch.equal(second[(3, 0, place)]['inputs'], image) for place, image in enumerate(taken))
    assert len({image.sum().item() for image in taken}) > 10


def test_loading_a_sample_leaves_the_random_generators_unchanged(folder):
    dataset = SeededDataset(Images(folder), max_broken=2)
    states = np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    dataset[(3, 0, 1)]
    assert states == (np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())


def test_sample_without_a_seed_is_not_replaced(folder):
    with pytest.raises(BrokenSampleError, match=r'03\.png'):
        SeededDataset(Images(folder), max_broken=2)[3]


def test_negative_max_broken_is_refused(folder):
    with pytest.raises(ValueError, match='max_broken must be 0 or more, got -1'):
        SeededDataset(Images(folder), max_broken=-1)


class WithPipeline(Dataset):
    pipeline = staticmethod(lambda index: 'old')

    def __len__(self):
        return 3

    def __getitem__(self, index):
        return self.pipeline(index)


def test_only_broken_samples_are_an_error():
    def fail(index):
        raise OSError('no such file')

    seeded = SeededDataset(WithPipeline(), max_broken=10)
    seeded.pipeline = fail
    with pytest.raises(
        BrokenSampleError, match='sample . is broken: OSError: no such file .*; all 3 samples are'
    ):
        seeded[0, 1]


def test_attributes_are_those_of_the_wrapped_data_set():
    """MMDetection's PipelineSwitchHook sets the pipeline, as RTMDet and YOLOX need it."""
    from mmdet.engine.hooks import PipelineSwitchHook

    seeded = SeededDataset(WithPipeline())
    loader = torch.utils.data.DataLoader(seeded)
    runner = SimpleNamespace(epoch=3, train_dataloader=loader, logger=logging.getLogger())
    PipelineSwitchHook(3, [lambda index: 'new']).before_train_epoch(runner)
    assert seeded[0] == seeded.dataset[0] == 'new'


def test_data_set_can_be_pickled():
    """As DataLoader does where workers are spawned."""
    assert pickle.loads(pickle.dumps(SeededDataset([7])))[0] == 7
