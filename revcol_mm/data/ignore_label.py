"""Check that data, transforms, model and metrics ignore the same label."""

from typing import Any, Iterator

from torch import nn
from torch.utils.data import Dataset

from .findings import Finding
from .pipelines import DEFAULT_IGNORE_INDEX, dataset_name, innermost_datasets

# Names of the ignored or padded label in OpenMMLab's classes
OPTIONS = ('ignore_index', 'ignore_label', 'seg_pad_val', 'seg_fill_in')


def check_ignore_label(
    where: str, dataset: Dataset, model: nn.Module | None, metrics: list[Any]
) -> Iterator[Finding]:
    """Check that everything that handles masks ignores, or pads with, the data set's ``ignore_index``.

    Args:
        where: 'train', 'val' or 'test', for messages.
        dataset: Data set for semantic segmentation. Others are skipped.
        model: Model with heads, losses and data preprocessor; None skips the comparison with a model.
        metrics: Metrics that evaluate on the data set.

    Yields:
        Transforms, modules of the model and metrics that have another label; and data sets that themselves
        map labels to another one.
    """
    for part, transforms in innermost_datasets(dataset):
        ignored = getattr(part, 'ignore_index', None)
        if not isinstance(ignored, int):
            continue
        place = dataset_name(part)
        removes_classes = DEFAULT_IGNORE_INDEX in (getattr(part, 'label_map', None) or {}).values()
        if ignored != DEFAULT_IGNORE_INDEX and (part.reduce_zero_label or removes_classes):
            cause = 'reduce_zero_label=True' if part.reduce_zero_label else 'leaving classes out'
            statement = f'{place}: {cause} turns labels into {DEFAULT_IGNORE_INDEX}'
            remedy = f'set its ignore_index to that, not to {ignored}'
            yield Finding.stated('ignored class', where, statement, remedy)
        users = [(type(each).__name__, each) for each in (*transforms, *metrics)]
        if model is not None:
            users += [(f'{name} of the model', module) for name, module in model.named_modules() if name]
        others = [
            f'{name} has {option}={label}'
            for name, user in users
            for option, label in _labels(user)
            if label != ignored
        ]
        if others:
            statement = f'{place} has ignore_index={ignored}, but {", ".join(others)}'
            yield Finding.stated('ignore_index', where, statement, 'set all to the same label')


def _labels(user: Any) -> Iterator[tuple[str, int]]:
    """Yield the option and value of every ignored or padded label of a transform, module or metric."""
    if getattr(user, 'cat_max_ratio', None) == 1.0:  # RandomCrop reads no labels then
        return
    for option in OPTIONS:
        label = getattr(user, option, None)
        # torch's losses have -100 by default, which ignores nothing
        if isinstance(label, int) and label >= 0:
            yield option, label
    pad_val = getattr(user, 'pad_val', None)  # of MMCV's Pad
    if isinstance(pad_val, dict) and 'seg' in pad_val:
        yield "pad_val['seg']", pad_val['seg']
