"""What is in the pipelines of data sets, inside of wrappers of either."""

from typing import Any, Iterator

from torch.utils.data import Dataset

NESTED = ('transforms', 'policies', 'subroutines')  # where OpenMMLab's transforms keep others


def innermost_datasets(dataset: Dataset, outer: tuple[Any, ...] = ()) -> Iterator[tuple[Dataset, list[Any]]]:
    """Yield every data set in wrappers that repeat, join or mix, with its transforms and theirs."""
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


def reads_images(name: str) -> bool:
    """Whether a transform of this name, such as LoadImageFromFile, reads images."""
    return name.startswith('Load') and 'Image' in name


def image_loader(transforms: list[Any]) -> Any:
    """The first of some transforms that reads images; None: there is none."""
    return next((each for each in transforms if reads_images(type(each).__name__)), None)


def ignore_index(dataset: Dataset) -> int:
    """The label of pixels that a data set, of several the first, leaves out.

    Without one it is MMSegmentation's default, 255.
    """
    first, _ = next(innermost_datasets(dataset))
    return getattr(first, 'ignore_index', 255)
