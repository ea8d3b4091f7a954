"""Channels of images: those that files have, that are normalised, and that the model takes."""

import random
from contextlib import contextmanager, suppress
from typing import Any, Iterator

import numpy as np
import torch
from mmengine.model import BaseDataPreprocessor, ImgDataPreprocessor
from torch import Tensor, nn
from torch.utils.data import Dataset

from revcol_mm.data.pipelines import image_loader, innermost_datasets
from revcol_mm.errors import PreflightError
from revcol_mm.models import ColumnBackbone
from revcol_mm.models.layers import LevelwiseDecoder, PixelShuffleDecoder

# OpenMMLab's that change colours, some of them now and then, and fail on images of other than 3 channels
FOR_COLOURS = {'ColorJitter', 'ColorTransform', 'Lighting', 'PhotoMetricDistortion', 'RandomGrayscale'}
FOR_COLOURS |= {'Color', 'YOLOXHSVRandomAug'}


def revcol_channels(model: nn.Module) -> int | None:
    """``in_channels`` of a model's RevCol; None: it has none, or several that differ."""
    found = {module.in_channels for module in model.modules() if isinstance(module, ColumnBackbone)}
    return found.pop() if len(found) == 1 else None


def check_normalisation(model: nn.Module) -> None:
    """Check that data preprocessors have as many means as a RevCol takes channels, or one for all.

    Raises:
        PreflightError: If not; if one of MMDetection swaps red and blue of images of other channels; or if
            images are to be rebuilt whose values are not from 0 to 255.
    """
    channels = revcol_channels(model)
    if channels is None:
        return
    for part in model.modules():
        if not isinstance(part, BaseDataPreprocessor):
            continue
        for name in ('mean', 'std'):
            values = getattr(part, name, None)
            if isinstance(values, Tensor) and values.numel() not in (1, channels):
                raise PreflightError(
                    f'data_preprocessor.{name} has {values.numel()} values, but the backbone has '
                    f'in_channels={channels}: give as many, or one for all'
                )
        if channels != 3 and isinstance(part, ImgDataPreprocessor) and part._channel_conversion:
            raise PreflightError(
                f'{type(part).__name__} turns BGR into RGB, but the backbone has in_channels={channels}: set '
                'data_preprocessor.bgr_to_rgb=False'
            )
        rebuilds = any(isinstance(each, (LevelwiseDecoder, PixelShuffleDecoder)) for each in model.modules())
        if rebuilds and isinstance(getattr(part, 'mean', None), Tensor) and part.mean.max() > 255:
            raise PreflightError(
                f'data_preprocessor.mean is up to {part.mean.max():g}, but supervision rebuilds images of '
                'values from 0 to 255: scale them, or set its reconstruction weight to 0'
            )


def check_images(dataset: Dataset, model: nn.Module) -> None:
    """Check that the first image of every data set has as many channels as a RevCol takes.

    Images that cannot be read are left to training, which may leave them out.

    Raises:
        PreflightError: If it has not, or its pipeline turns colours that it does not have.
    """
    wanted = revcol_channels(model)
    for part, transforms in innermost_datasets(dataset):
        loader = image_loader(transforms)
        if loader is None or not hasattr(part, 'get_data_info'):
            continue
        place = f'{type(part).__name__} at {getattr(part, "data_root", "?")}'
        info, read, packed = {}, None, None
        with _same_randomness(), suppress(Exception):  # decoders and transforms raise all sorts
            info = part.get_data_info(0)
            read = loader(dict(info))['img']
            packed = _packed_channels(part[0])
        if read is None:
            continue
        channels = 1 if read.ndim == 2 else read.shape[-1]
        for transform in transforms:
            name = type(transform).__name__
            if channels != 3 and name in FOR_COLOURS:
                raise PreflightError(
                    f'{place}: {name} is for images of 3 channels, these have {channels}: leave it out of '
                    'the pipeline'
                )
        channels = packed or channels
        if wanted not in (None, channels):
            shape = ' x '.join(map(str, read.shape))
            bands_first = read.ndim == 3 and read.shape[0] == wanted
            raise PreflightError(
                f'{place}: images have {channels} channels, but the backbone has in_channels={wanted} '
                f'({info.get("img_path")}, read by {type(loader).__name__} as {shape}): '
                + (
                    'store bands last, not first'
                    if bands_first
                    else "set model.backbone.in_channels, or the loader's color_type or imdecode_backend"
                )
            )


def _packed_channels(sample: dict[str, Any]) -> int | None:
    """Channels of what a whole pipeline gives; None if it is something else than images."""
    inputs = sample.get('inputs')
    inputs = inputs[0] if isinstance(inputs, (list, tuple)) else inputs  # test-time augmentation
    return inputs.shape[-3] if isinstance(inputs, Tensor) and inputs.ndim >= 3 else None


@contextmanager
def _same_randomness() -> Iterator[None]:
    """Whatever is drawn in this block does not change what is drawn after it."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
