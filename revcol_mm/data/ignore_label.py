"""Check that data, transforms, model and metrics ignore the same label."""

from typing import Any, Iterator

from torch import nn
from torch.utils.data import Dataset

from revcol_mm.errors import PreflightError

from .pipelines import DEFAULT_IGNORE_INDEX, dataset_name, innermost_datasets

# Names of the ignored or padded label in OpenMMLab's classes
OPTIONS = ('ignore_index', 'ignore_label', 'seg_pad_val', 'seg_fill_in')


def check_ignore_label(dataset: Dataset, model: nn.Module | None, metrics: list[Any]) -> None:
    """Check that everything that handles masks ignores, or pads with, the data set's ``ignore_index``.

    Args:
        dataset: Data set for semantic segmentation. Others are skipped.
        model: Model with heads, losses and data preprocessor; None skips the comparison with a model.
        metrics: Metrics that evaluate on the data set.

    Raises:
        PreflightError: If a transform, a module of the model or a metric has another label, or the data set
            itself maps labels to another one.
    """
    for part, transforms in innermost_datasets(dataset):
        ignored = getattr(part, 'ignore_index', None)
        if not isinstance(ignored, int):
            continue
        place = dataset_name(part)
        removes_classes = DEFAULT_IGNORE_INDEX in (getattr(part, 'label_map', None) or {}).values()
        if ignored != DEFAULT_IGNORE_INDEX and (part.reduce_zero_label or removes_classes):
            cause = 'reduce_zero_label=True' if part.reduce_zero_label else 'leaving classes out'
            raise PreflightError(
                f'{place}: {cause} turns labels into {DEFAULT_IGNORE_INDEX}: set its ignore_index to that, '
                f'not to {ignored}'
            )
        users = [(type(each).__name__, each) for each in (*transforms, *metrics)]
        if model is not None:
            users += [(f'{name} of the model', module) for name, module in model.named_modules() if name]
        for name, user in users:
            for option, label in _labels(user):
                if label != ignored:
                    raise PreflightError(
                        f'{place} has ignore_index={ignored}, but {name} has {option}={label}: set both to '
                        'the same label'
                    )


def _labels(user: Any) -> Iterator[tuple[str, int]]:
    """Yield the option and value of every ignored or padded label of a transform, module or metric."""
    if getattr(user, 'cat_max_ratio', None) == 1.0:  # RandomCrop reads no labels then
        return
    for option in OPTIONS:
        label = getattr(user, option, None)
        if (
            isinstance(label, int) and label >= 0
        ):  # torch's losses have -100 by default, which ignores nothing
            yield option, label
    pad_val = getattr(user, 'pad_val', None)  # of MMCV's Pad
    if isinstance(pad_val, dict) and 'seg' in pad_val:
        yield "pad_val['seg']", pad_val['seg']
