"""The label that is left out of training and metrics: one for data, transforms, model and metrics."""

from typing import Any, Iterator

from torch import nn
from torch.utils.data import Dataset

from revcol_mm.errors import PreflightError

from .pipelines import innermost_datasets

DEFAULT = 255  # MMSegmentation's, which reduce_zero_label and classes that are left out turn labels into
OPTIONS = ('ignore_index', 'ignore_label', 'seg_pad_val', 'seg_fill_in')  # of OpenMMLab's classes


def check_ignore_label(dataset: Dataset, model: nn.Module | None, metrics: list[Any]) -> None:
    """Check that all that labels go through leaves out, or pads with, a data set's ``ignore_index``.

    Args:
        dataset: Semantic segmentation's; others are passed over.
        model: With its heads, losses and data preprocessor. None: there is none to compare with.
        metrics: Those of the data set.

    Raises:
        PreflightError: If a transform, a part of the model or a metric has another label, or the data set
            itself turns labels into another.
    """
    for part, transforms in innermost_datasets(dataset):
        ignored = getattr(part, 'ignore_index', None)
        if not isinstance(ignored, int):
            continue
        place = f'{type(part).__name__} at {getattr(part, "data_root", "?")}'
        turned = DEFAULT in (getattr(part, 'label_map', None) or {}).values()
        if ignored != DEFAULT and (part.reduce_zero_label or turned):
            why = 'reduce_zero_label=True' if part.reduce_zero_label else 'leaving classes out'
            raise PreflightError(
                f'{place}: {why} turns labels into {DEFAULT}: set its ignore_index to that, not to {ignored}'
            )
        modules = (
            [(f'{name} of the model', module) for name, module in model.named_modules() if name]
            if model
            else []
        )
        others = [(type(other).__name__, other) for other in (*transforms, *metrics)]
        for name, other in (*modules, *others):
            for option, label in _labels(other):
                if label != ignored:
                    raise PreflightError(
                        f'{place} has ignore_index={ignored}, but {name} has {option}={label}: set both to '
                        'one label'
                    )


def _labels(part: Any) -> Iterator[tuple[str, int]]:
    """The labels that are left out or stand for padding, as a transform, module or metric has them."""
    if getattr(part, 'cat_max_ratio', None) == 1.0:  # RandomCrop that does not look at labels
        return
    for option in OPTIONS:
        label = getattr(part, option, None)
        if isinstance(label, int) and label >= 0:  # torch's own loss has -100, which is no label at all
            yield option, label
    pad_val = getattr(part, 'pad_val', None)  # of MMCV's Pad
    if isinstance(pad_val, dict) and 'seg' in pad_val:
        yield "pad_val['seg']", pad_val['seg']
