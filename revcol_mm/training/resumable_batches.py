"""Training batches that start where a resumed run was saved, without loading the batches before it.

torchdata's StatefulDataLoader saves the state of one process and its workers, so a run could not continue
with other numbers of them.
"""

from typing import Any, Iterator

from mmengine.dataset import InfiniteSampler
from mmengine.dist import get_rank, get_world_size
from mmengine.logging import MMLogger
from mmengine.registry import DATA_SAMPLERS
from torch.utils.data import BatchSampler, Sampler

from revcol_mm.errors import CheckpointError


@DATA_SAMPLERS.register_module()
class ResumableBatchSampler:
    """Batch sampler that can start at any iteration and yields the seed of every sample's augmentation.

    A batch is a list of ``(index, seed, rank, epoch, batch, position)``, see :class:`SeededDataset`.

    Args:
        sampler: Yields indices.
        batch_size: Samples in a batch of this process.
        batch_sampler: Config of a batch sampler to use in place of torch's.
        drop_last: Whether torch's batch sampler drops an incomplete last batch.
        seed: Seed of the run.
        num_iters: Iterations that the resumed run has done.
        num_epochs: Epochs that the resumed run has finished. None if the run is iteration-based.
        saved_extent: :attr:`extent` of the resumed run. If it differs from the present one, a run by
            iterations continues after the same number of samples.

    Attributes:
        extent: Global batch size, number of images, and batches in an epoch.

    Raises:
        CheckpointError: If an epoch-based run had epochs of another length.
        ValueError: If there are both ``batch_sampler`` and ``drop_last``.
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
        saved_extent: dict[str, int] | None = None,
    ) -> None:
        self.sampler, self.batch_size, self.seed = sampler, batch_size, seed
        if batch_sampler is not None and drop_last:
            raise ValueError('drop_last has no effect beside batch_sampler: set it there')
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
        self.by_epoch = num_epochs is not None
        num_iters = self._same_place(num_iters, saved_extent or self.extent)
        if self.by_epoch:
            self.next_epoch, self.skip = num_epochs, max(0, num_iters - num_epochs * len(self))
        elif isinstance(sampler, InfiniteSampler):
            self.next_epoch, self.skip = 0, num_iters
        else:  # len(self) is 0 for an empty data set, which PreflightHook reports
            self.next_epoch, self.skip = divmod(num_iters, max(1, len(self)))

    def _same_place(self, num_iters: int, before: dict[str, int]) -> int:
        """Convert the iterations of the resumed run to batches of the present size with as many samples."""
        if num_iters == 0 or before == self.extent:
            return num_iters
        change = ', '.join(
            f'{name} {before[name]} -> {self.extent[name]}'
            for name in self.extent
            if before[name] != self.extent[name]
        )
        if self.by_epoch and before['epoch_length'] != self.extent['epoch_length']:
            raise CheckpointError(
                f'cannot resume: the length of an epoch has changed ({change}); keep the data and the global '
                'batch size, or start a new run from the weights with load_from'
            )
        message = f'the data or batch size has changed since the checkpoint was saved: {change}'
        MMLogger.get_current_instance().warning(message)
        if self.by_epoch:  # its epochs have as many batches as before
            return num_iters
        return num_iters * before['batch_size'] // self.extent['batch_size']

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[tuple[int, ...]]]:
        skip, self.skip = self.skip, 0
        if self.next_epoch is not None and hasattr(self.sampler, 'set_epoch'):
            self.sampler.set_epoch(self.next_epoch)
        # DistSamplerSeedHook sets the later epochs of an epoch-based run. In an iteration-based one MMEngine
        # would count from 0 after resuming.
        self.next_epoch = None if self.by_epoch else self.next_epoch + 1
        place = self.seed, get_rank(), getattr(self.sampler, 'epoch', 0)
        for number, batch in enumerate(self.batches):
            if number >= skip:
                yield [(index, *place, number, i) for i, index in enumerate(batch)]


class ResumedBatches:
    """Iterator of a resumed IterBasedTrainLoop whose first batches are dropped by the loop and not loaded.

    MMEngine's loop drops as many batches as there were iterations by ``next``; the loop of the onedl fork
    calls ``skip_iter``. The batches from ResumableBatchSampler already start at the right place.

    Args:
        batches: The loop's iterator.
        num_dropped: Number of batches that the loop drops.
    """

    def __init__(self, batches: Iterator[Any], num_dropped: int) -> None:
        self.batches, self.num_dropped = batches, num_dropped

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        if self.num_dropped:
            self.num_dropped -= 1
            return None
        return next(self.batches)

    def skip_iter(self, num_iters: int) -> None:
        self.num_dropped = 0
