"""A data set whose augmentation is reproducible and whose broken samples are replaced in training."""

import random
from itertools import count
from typing import Any

import torch
from mmengine.logging import MMLogger
from mmengine.registry import DATASETS
from torch.utils.data import Dataset

from revcol_mm.data.random_states import restored_random_states
from revcol_mm.data.splits import build_dataset
from revcol_mm.errors import reason_and_place

from .seeding import seed_everything


class BrokenSampleError(RuntimeError):
    """An image or its annotation cannot be loaded or augmented, and may not be replaced."""

    def __init__(self, message: str) -> None:
        # When a DataLoader worker raises, torch calls this class with the worker's traceback as the message.
        stack, _, reason = message.rpartition('BrokenSampleError: ')
        super().__init__(reason.strip())
        if stack:
            self.__cause__ = RuntimeError(stack)


@DATASETS.register_module()
class SeededDataset(Dataset):
    """Wrapper of a data set that seeds the augmentation of every sample and replaces broken samples.

    The augmentation depends only on the numbers that :class:`ResumableBatchSampler` adds to the index (seed,
    rank, epoch, batch, position), and not on the number of workers or on where a run was resumed.

    A sample is broken if loading it raises any exception. Another sample, drawn from the same seed, replaces
    it, so a resumed run gets the same replacement. Each broken sample is logged once; all workers of a
    process share the count.

    Args:
        dataset: The data set, or its config. Reading or setting an attribute of the wrapper, as MMDetection's
            PipelineSwitchHook does, reads or sets that of the data set.
        max_broken: Number of distinct broken samples that may be replaced in this process. With 0, as in
            validation and testing, the first one is an error.

    Raises:
        BrokenSampleError: In ``__getitem__``, for the first broken sample beyond ``max_broken``, or if all
            samples are broken.
        ValueError: If ``max_broken`` is negative.
    """

    def __init__(self, dataset: Dataset | dict, max_broken: int = 0) -> None:
        if max_broken < 0:
            raise ValueError(f'max_broken must be 0 or more, got {max_broken}')
        own = vars(self)  # __setattr__ would set the attributes of the wrapped data set
        own['dataset'] = build_dataset(dataset) if isinstance(dataset, dict) else dataset
        own['max_broken'] = max_broken
        own['broken'] = torch.zeros(len(self.dataset), dtype=torch.bool).share_memory_()

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: int | tuple[int, ...]) -> Any:
        """Return the sample of an index, without replacement, or of ``(index, *entropy)``, seeded."""
        if not isinstance(key, tuple):
            return self._load(key, max_broken=0)
        index, *entropy = key
        with restored_random_states():
            seed_everything(*entropy)
            for attempt in count(1):
                sample = self._load(index, self.max_broken)
                if sample is not None:
                    return sample
                seed_everything(*entropy, attempt)
                index = random.randrange(len(self))

    def _load(self, index: int, max_broken: int) -> Any:
        """Return a sample, or None if it is broken and may be replaced."""
        try:
            return self.dataset[index]
        except Exception as error:  # decoders and transforms raise exceptions of any type
            message = f'{self._name(index)} is broken: {reason_and_place(error)}'
            is_new = not self.broken[index]
            self.broken[index] = True
            num_broken = int(self.broken.sum())
            if num_broken > max_broken:
                limit = f'; max_broken={max_broken} others were replaced before' if max_broken else ''
                raise BrokenSampleError(message + limit) from error
            if num_broken == len(self):
                raise BrokenSampleError(f'{message}; all {num_broken} samples are broken') from error
        if is_new:  # logged as an error because warnings of ranks other than 0 are not shown
            MMLogger.get_current_instance().error(
                f'{message}; replaced by another sample, {max_broken - num_broken} more may be'
            )
        return None

    def _name(self, index: int) -> str:
        """Return the files of a sample, if the data set names them, else its index."""
        info = self.dataset.get_data_info(index) if hasattr(self.dataset, 'get_data_info') else {}
        paths = [str(info[key]) for key in ('img_path', 'seg_map_path') if info.get(key)]
        return ' with '.join(paths) or f'sample {index}'

    def __getattr__(self, name: str) -> Any:
        if name == 'dataset':  # not set yet while unpickling
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.dataset, name, value)
