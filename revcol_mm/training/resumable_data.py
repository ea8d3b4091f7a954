"""Training data whose order and augmentation do not depend on where a run was interrupted.

Nor do they on broken samples, which others replace.
"""

import logging
import random
import traceback
from itertools import count
from pathlib import Path
from typing import Any, Iterator

import numpy as np
import torch
from mmengine.dataset import InfiniteSampler
from mmengine.dist import get_rank, get_world_size
from mmengine.logging import print_log
from mmengine.registry import DATA_SAMPLERS, DATASETS
from torch.utils.data import BatchSampler, Dataset, Sampler

from revcol_mm.data.splits import build_dataset
from revcol_mm.errors import CheckpointError


def seed_everything(*entropy: int) -> None:
    """Seed the generators of Python, NumPy and torch by a hash of numbers."""
    seeds = np.random.SeedSequence(entropy).generate_state(3)
    random.seed(int(seeds[0]))
    np.random.seed(seeds[1])
    torch.manual_seed(int(seeds[2]))


class BrokenSampleError(RuntimeError):
    """An image or its annotation cannot be read or augmented, and may not be left out."""

    def __init__(self, message: str) -> None:
        # torch puts the worker's traceback before the message of what is raised in a worker
        stack, _, reason = message.rpartition('BrokenSampleError: ')
        super().__init__(reason.strip())
        if stack:
            self.__cause__ = RuntimeError(stack)


@DATASETS.register_module()
class SeededDataset(Dataset):
    """A data set whose augmentation of a sample depends on the sample's place in the run alone.

    Otherwise it depends on how often the process that loads it has drawn before.

    In the place of a sample that is broken (whatever its pipeline raises) comes another one, drawn by the
    place in the run too, so that a resumed run meets the same. A broken sample is logged when it is first
    met, by the worker that met it; all workers of a process count together.

    Args:
        dataset: Config of the data set that samples are taken from. Its attributes are this one's, too; to
            set one, as MMDetection's PipelineSwitchHook does, sets that data set's.
        max_broken: Different broken samples that this process leaves out, counted from its start. 0, as for
            validation and testing: the first one is an error.

    Raises:
        BrokenSampleError: For the first broken sample beyond ``max_broken``, with the files and the reason,
            and where all samples are broken.
        ValueError: If ``max_broken`` is negative.
    """

    def __init__(self, dataset: Dataset | dict, max_broken: int = 0) -> None:
        if max_broken < 0:
            raise ValueError(f'max_broken takes a number from 0 on, got {max_broken}')
        own = vars(self)
        own['dataset'] = build_dataset(dataset) if isinstance(dataset, dict) else dataset
        own['max_broken'] = max_broken
        own['broken'] = torch.zeros(len(self.dataset), dtype=torch.bool).share_memory_()

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: int | tuple[int, ...]) -> Any:
        """The sample ``index``, or that of ``(index, *entropy)``, as ResumableBatchSampler yields them."""
        if not isinstance(key, tuple):
            return self._read(key, max_broken=0)
        index, *entropy = key
        states = random.getstate(), np.random.get_state(), torch.get_rng_state()
        try:
            seed_everything(*entropy)
            for attempt in count(1):
                sample = self._read(index, self.max_broken)
                if sample is not None:
                    return sample
                seed_everything(*entropy, attempt)
                index = random.randrange(len(self))
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])
            torch.set_rng_state(states[2])

    def _read(self, index: int, max_broken: int) -> Any:
        """A sample; None if it is broken and may be left out."""
        try:
            return self.dataset[index]
        except Exception as error:  # decoders and transforms raise all sorts
            place = traceback.extract_tb(error.__traceback__)[-1]
            reason = ' '.join(f'{type(error).__name__}: {error}'.split())
            message = f'{self._name(index)} is broken: {reason} ({Path(place.filename).name}:{place.lineno})'
            is_new = not self.broken[index]
            self.broken[index] = True
            number = int(self.broken.sum())
            if number > max_broken or number == len(self):
                limit = f'; max_broken={max_broken} were left out before' if max_broken else ''
                if number <= max_broken:
                    limit = f'; as are all {number} samples'
                raise BrokenSampleError(message + limit) from error
        if is_new:  # an error, for warnings of other processes than the first are not shown
            left = max_broken - number
            print_log(f'{message}; left out, {left} more may be', 'current', level=logging.ERROR)
        return None

    def _name(self, index: int) -> str:
        """The files of a sample, as far as the data set names them."""
        info = self.dataset.get_data_info(index) if hasattr(self.dataset, 'get_data_info') else {}
        paths = [str(info[key]) for key in ('img_path', 'seg_map_path') if info.get(key)]
        return ' with '.join(paths) or f'sample {index}'

    def __getattr__(self, name: str) -> Any:
        if name == 'dataset':  # not there yet: while unpickling
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.dataset, name, value)


@DATA_SAMPLERS.register_module()
class ResumableBatchSampler:
    """Batches of ``(index, *entropy)`` that can begin anywhere, without loading what comes before.

    Args:
        sampler: Yields indices.
        batch_size: Samples in a batch.
        batch_sampler: Config of another batch sampler than torch's. None: torch's.
        drop_last: Whether torch's leaves out an incomplete last batch.
        seed: Seed of the run.
        num_iters: Iterations that the run has done before.
        num_epochs: Epochs that it has ended before. None: it does not count in epochs.
        data: :attr:`extent` of the run before. A run on other data, in other batches or processes begins
            where as many samples have been drawn.

    Attributes:
        extent: Samples in a batch of all processes, images, and batches of an epoch.

    Raises:
        CheckpointError: If a run that counts in epochs has epochs of another length than before.
    """

    def __init__(
        self,
        sampler: Sampler,
        batch_size: int,
        batch_sampler: dict | None = None,
        drop_last: bool = False,
        seed: int = 0,
        num_iters: int = 0,
        num_epochs: int | None = None,
        data: dict[str, int] | None = None,
    ) -> None:
        self.sampler, self.batch_size, self.seed = sampler, batch_size, seed
        if batch_sampler is None:
            self.batches = BatchSampler(sampler, batch_size, drop_last)
        else:
            self.batches = DATA_SAMPLERS.build(
                batch_sampler, default_args=dict(sampler=sampler, batch_size=batch_size)
            )
        self.extent = dict(
            batch_size=batch_size * get_world_size(),
            images=len(getattr(sampler, 'dataset', sampler)),
            epoch_length=len(self.batches),
        )
        num_iters = self._same_place(num_iters, num_epochs is not None, data or self.extent)
        if num_epochs is not None:
            self.first_epoch, self.skip = num_epochs, max(0, num_iters - num_epochs * len(self))
        elif isinstance(sampler, InfiniteSampler):
            self.first_epoch, self.skip = 0, num_iters
        else:  # PreflightHook reports empty data
            self.first_epoch, self.skip = divmod(num_iters, max(1, len(self)))
        self.begun = False

    def _same_place(self, num_iters: int, by_epoch: bool, before: dict[str, int]) -> int:
        """How many of the present batches hold the samples that were drawn before."""
        if num_iters == 0 or before == self.extent:
            return num_iters
        change = ', '.join(
            f'{name} {before[name]} -> {self.extent[name]}'
            for name in self.extent
            if before[name] != self.extent[name]
        )
        if by_epoch and before['epoch_length'] != self.extent['epoch_length']:
            raise CheckpointError(
                f'cannot resume: epochs have another length than before ({change}); keep the data and the '
                'batch size of all processes, or take the weights alone by load_from'
            )
        print_log(f'the run goes on with other data: {change}', 'current', level=logging.WARNING)
        return num_iters * before['batch_size'] // self.extent['batch_size']

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[tuple[int, ...]]]:
        skip = 0
        if not self.begun:  # here, since MMEngine's DistSamplerSeedHook may have set another epoch
            self.begun, skip = True, self.skip
            if hasattr(self.sampler, 'set_epoch'):
                self.sampler.set_epoch(self.first_epoch)
        place = self.seed, get_rank(), getattr(self.sampler, 'epoch', 0)
        for number, batch in enumerate(self.batches):
            if number >= skip:
                yield [(index, *place, number, i) for i, index in enumerate(batch)]
