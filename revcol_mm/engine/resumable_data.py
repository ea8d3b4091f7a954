"""Training data whose order and augmentation do not depend on where a run was interrupted."""

import random
from typing import Any, Iterator

import numpy as np
import torch
from mmengine.dataset import InfiniteSampler
from mmengine.dist import get_rank
from mmengine.registry import DATA_SAMPLERS, DATASETS
from torch.utils.data import BatchSampler, Dataset, Sampler


def seed_everything(*entropy: int) -> None:
    """Seed the generators of Python, NumPy and torch by a hash of numbers."""
    seeds = np.random.SeedSequence(entropy).generate_state(3)
    random.seed(int(seeds[0]))
    np.random.seed(seeds[1])
    torch.manual_seed(int(seeds[2]))


@DATASETS.register_module()
class SeededDataset(Dataset):
    """A data set whose augmentation of a sample depends on the sample's place in the run alone.

    Otherwise it depends on how often the process that loads it has drawn before.

    Args:
        dataset: Config of the data set that samples are taken from; its attributes are this one's, too.
    """

    def __init__(self, dataset: Dataset | dict) -> None:
        self.dataset = DATASETS.build(dataset) if isinstance(dataset, dict) else dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: int | tuple[int, ...]) -> Any:
        """The sample ``index``, or that of ``(index, *entropy)``, as ResumableBatchSampler yields them."""
        if not isinstance(key, tuple):
            return self.dataset[key]
        index, *entropy = key
        states = random.getstate(), np.random.get_state(), torch.get_rng_state()
        try:
            seed_everything(*entropy)
            return self.dataset[index]
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])
            torch.set_rng_state(states[2])

    def __getattr__(self, name: str) -> Any:
        if name == 'dataset':  # not there yet: while unpickling
            raise AttributeError(name)
        return getattr(self.dataset, name)


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
    ) -> None:
        self.sampler, self.batch_size, self.seed = sampler, batch_size, seed
        if batch_sampler is None:
            self.batches = BatchSampler(sampler, batch_size, drop_last)
        else:
            self.batches = DATA_SAMPLERS.build(
                batch_sampler, default_args=dict(sampler=sampler, batch_size=batch_size)
            )
        if num_epochs is not None:
            self.first_epoch, self.skip = num_epochs, max(0, num_iters - num_epochs * len(self))
        elif isinstance(sampler, InfiniteSampler):
            self.first_epoch, self.skip = 0, num_iters
        else:  # PreflightHook reports empty data
            self.first_epoch, self.skip = divmod(num_iters, max(1, len(self)))
        self.begun = False

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
