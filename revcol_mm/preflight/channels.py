"""Compare the channels of images, of their normalization and of the model."""

from contextlib import suppress
from typing import Any

from mmengine.model import BaseDataPreprocessor, ImgDataPreprocessor
from torch import Tensor, nn
from torch.utils.data import Dataset

from revcol_mm.data.pipelines import dataset_name, image_loader, innermost_datasets
from revcol_mm.data.random_states import restored_random_states
from revcol_mm.errors import PreflightError
from revcol_mm.models import ColumnBackbone
from revcol_mm.models.layers import LevelwiseDecoder, PixelShuffleDecoder

# OpenMMLab's transforms of colours, which fail on images without 3 channels, some of them only at random
COLOUR_TRANSFORMS = {
    'Color',
    'ColorJitter',
    'ColorTransform',
    'Lighting',
    'PhotoMetricDistortion',
    'RandomGrayscale',
    'YOLOXHSVRandomAug',
}


def revcol_channels(model: nn.Module) -> int | None:
    """Return the ``in_channels`` of a model's RevCol, or None if there is none, or several that differ."""
    found = {module.in_channels for module in model.modules() if isinstance(module, ColumnBackbone)}
    return found.pop() if len(found) == 1 else None


def check_normalisation(model: nn.Module) -> None:
    """Check that data preprocessors fit the channels of a RevCol.

    Raises:
        PreflightError: If the number of means or standard deviations is neither 1 nor the number of
            channels; if a preprocessor swaps red and blue in images without 3 channels; or if supervision
            reconstructs images whose values are not from 0 to 255.
    """
    channels = revcol_channels(model)
    if channels is None:
        return
    reconstructs = any(isinstance(each, (LevelwiseDecoder, PixelShuffleDecoder)) for each in model.modules())
    for part in model.modules():
        if not isinstance(part, BaseDataPreprocessor):
            continue
        for name in ('mean', 'std'):
            values = getattr(part, name, None)
            if isinstance(values, Tensor) and values.numel() not in (1, channels):
                raise PreflightError(
                    f'data_preprocessor.{name} has {values.numel()} values, but the backbone has '
                    f'in_channels={channels}: give one value for each channel, or one for all'
                )
        if channels != 3 and isinstance(part, ImgDataPreprocessor) and part._channel_conversion:
            raise PreflightError(
                f'{type(part).__name__} turns BGR into RGB, but the backbone has in_channels={channels}: set '
                'data_preprocessor.bgr_to_rgb=False'
            )
        mean = getattr(part, 'mean', None)
        if reconstructs and isinstance(mean, Tensor) and mean.max() > 255:
            raise PreflightError(
                f'data_preprocessor.mean is up to {mean.max():g}, but supervision reconstructs images with '
                'values from 0 to 255: scale them, or set its reconstruction weight to 0'
            )


def check_images(dataset: Dataset, model: nn.Module) -> None:
    """Check that the first image of every data set has the number of channels that a RevCol expects.

    Images that cannot be read are skipped, because training may leave them out.

    Raises:
        PreflightError: If an image has another number of channels, or a colour transform gets images
            without 3 channels.
    """
    wanted = revcol_channels(model)
    for part, transforms in innermost_datasets(dataset):
        loader = image_loader(transforms)
        if loader is None or not hasattr(part, 'get_data_info'):
            continue
        info, image, packed = {}, None, None
        with restored_random_states(), suppress(Exception):  # decoders and transforms may raise anything
            info = part.get_data_info(0)
            image = loader(dict(info))['img']
            packed = _packed_channels(part[0])
        if image is None:
            continue
        place = dataset_name(part)
        channels = 1 if image.ndim == 2 else image.shape[-1]
        for name in [type(each).__name__ for each in transforms]:
            if channels != 3 and name in COLOUR_TRANSFORMS:
                raise PreflightError(
                    f'{place}: {name} needs images of 3 channels, but these have {channels}: remove it from '
                    'the pipeline'
                )
        channels = packed or channels
        if wanted not in (None, channels):
            shape = ' x '.join(map(str, image.shape))
            remedy = "set model.backbone.in_channels, or the loader's color_type or imdecode_backend"
            if image.ndim == 3 and image.shape[0] == wanted:
                remedy = 'save images with the bands in the last dimension, not the first'
            raise PreflightError(
                f'{place}: images have {channels} channels, but the backbone has in_channels={wanted} '
                f'({info.get("img_path")}, read by {type(loader).__name__} as {shape}): {remedy}'
            )


def _packed_channels(sample: dict[str, Any]) -> int | None:
    """Return the channels of the output of a pipeline, or None if it is not an image."""
    inputs = sample.get('inputs')
    inputs = inputs[0] if isinstance(inputs, (list, tuple)) else inputs  # test-time augmentation
    return inputs.shape[-3] if isinstance(inputs, Tensor) and inputs.ndim >= 3 else None
