"""Look through wrappers of data sets and of transforms."""

from typing import Any, Iterator

from torch.utils.data import Dataset

DEFAULT_IGNORE_INDEX = 255  # MMSegmentation's, which its reduce_zero_label and label_map also write
NESTED = ('transforms', 'policies', 'subroutines')  # attributes where OpenMMLab's transforms keep others


def innermost_datasets(dataset: Dataset, outer: tuple[Any, ...] = ()) -> Iterator[tuple[Dataset, list[Any]]]:
    """Yield every unwrapped data set with its transforms, followed by those of its wrappers.

    Wrappers are data sets that repeat, concatenate or mix others.

    Args:
        dataset: The data set, wrapped or not.
        outer: Transforms of the wrappers around it.
    """
    transforms = (*_flatten(getattr(dataset, 'pipeline', ())), *outer)
    inner = [dataset.dataset] if hasattr(dataset, 'dataset') else getattr(dataset, 'datasets', ())
    for part in inner:
        yield from innermost_datasets(part, transforms)
    if not inner:
        yield dataset, list(transforms)


def _flatten(node: Any) -> Iterator[Any]:
    if isinstance(node, (list, tuple)):
        for part in node:
            yield from _flatten(part)
    elif not isinstance(node, (dict, str)):
        yield node
        for name in NESTED:
            yield from _flatten(getattr(node, name, ()))


def transforms_of(dataset: Dataset) -> list[Any]:
    """Return the transforms of an unwrapped data set, including those nested in other transforms."""
    return next(innermost_datasets(dataset))[1]


def dataset_name(dataset: Dataset) -> str:
    """Return the name of a data set for messages: its class and root folder."""
    return f'{type(dataset).__name__} at {getattr(dataset, "data_root", "?")}'


def transform_name(transform: dict) -> str:
    """Return the name of a transform of a config, whose type is a name or a class."""
    return transform['type'] if isinstance(transform['type'], str) else transform['type'].__name__


def reads_images(name: str) -> bool:
    """Whether a transform class of this name, such as LoadImageFromFile, reads images."""
    return name.startswith('Load') and 'Image' in name


def image_loader(transforms: list[Any]) -> Any:
    """Return the first transform that reads images, or None."""
    return next((each for each in transforms if reads_images(type(each).__name__)), None)


def ignore_index(dataset: Dataset) -> int:
    """Return the label that a data set, or the first of several, ignores. MMSegmentation's default is 255."""
    first, _ = next(innermost_datasets(dataset))
    return getattr(first, 'ignore_index', DEFAULT_IGNORE_INDEX)
