"""Match the weights of a checkpoint to those of a model, and report on every key."""

import re
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import torch.nn.functional as F
from mmengine.logging import print_log
from torch import Tensor, nn

from revcol_mm.errors import CheckpointError

from .layouts import BACKBONE, BACKBONE_NAME, model_weights
from .reading import read_checkpoint

STEM = 'stem.0.weight'  # RevCol's first convolution, (C, in_channels, 4, 4)


def pad_kernel(weight: Tensor, size: int) -> Tensor:
    """Zero-pad a depthwise kernel (C, 1, k, k) to (C, 1, size, size); the convolution computes the same.

    Raises:
        ValueError: If the kernel is larger, or one of the sizes is odd and the other even.
    """
    margin, odd = divmod(size - weight.shape[-1], 2)
    if margin < 0 or odd:
        raise ValueError(f'cannot zero-pad a kernel from size {weight.shape[-1]} to {size}')
    return F.pad(weight, [margin] * 4)


def adapt_stem(weight: Tensor, in_channels: int) -> Tensor:
    """Adapt the first convolution of a network for RGB to images with another number of channels.

    This is what timm's ``adapt_input_conv`` does. For one channel, the kernels of the three colours are
    summed, so a grey image gives the same response as in RGB. For other numbers they are repeated (red,
    green, blue, red, ...) and multiplied by 3 / in_channels, which keeps the scale of the response. That is a
    better start for training than random weights, according to timm's author; the model must learn what the
    additional channels mean.

    Args:
        weight: (C, 3, k, k).
        in_channels: Channels of the images.

    Returns:
        (C, in_channels, k, k).
    """
    if in_channels == 1:
        return weight.float().sum(1, keepdim=True).to(weight.dtype)
    repeated = weight.repeat(1, -(-in_channels // 3), 1, 1)[:, :in_channels]
    return repeated * (3 / in_channels)


class LoadReport(NamedTuple):
    """Keys of a checkpoint and a model, by how they were matched.

    Args:
        matched: In both, with the same shape; includes ``padded`` and ``adapted``.
        padded: Depthwise kernels that were zero-padded.
        adapted: Stems that were adapted to another number of channels.
        missing: In the model only.
        mismatched: In both, with different shapes.
        unexpected: In the checkpoint only.
    """

    matched: list[str]
    padded: list[str]
    adapted: list[str]
    missing: list[str]
    mismatched: list[str]
    unexpected: list[str]

    def __str__(self) -> str:
        modules = Counter(name.removeprefix(BACKBONE).split('.')[0] for name in self.unexpected)
        lines = [
            f'matched {len(self.matched)}, of which zero-padded to a larger kernel {len(self.padded)}',
            *([f'adapted to the channels of the images: {self.adapted}'] if self.adapted else []),
            f'missing {len(self.missing)}: {self.missing[:5]}',
            f'different shapes {len(self.mismatched)}: {self.mismatched[:5]}',
            f'unexpected {len(self.unexpected)}, by module: {dict(modules)}',
        ]
        return '\n  '.join(lines)


def fit_weights(
    weights: dict[str, Tensor],
    model: nn.Module,
    source: str,
    required: str = '',
    adapt: bool = True,
) -> LoadReport:
    """Compare a state dict with a model, adapt weights where possible, and log what matches.

    Depthwise kernels that are smaller than the model's are zero-padded (RevCol-H for segmentation is the 3x3
    model padded to 7x7), and a stem for RGB is adapted to other channels, see :func:`adapt_stem`. Both are
    changed in ``weights``.

    Args:
        weights: State dict with the model's names.
        model: What the weights will be loaded into.
        source: Where the weights come from, for messages.
        required: Prefix of the weights that must be in the checkpoint. The default means all of them.
        adapt: Whether to adapt a stem; False for testing, because an adapted stem needs training.

    Returns:
        The report, which was logged.

    Raises:
        CheckpointError: If nothing matches, a required weight is missing or has another shape, or the
            checkpoint's backbone has weights that the model's backbone lacks.
    """
    state = model.state_dict()
    report = LoadReport([], [], [], [], [], [name for name in weights if name not in state])
    errors = [name for name in report.unexpected if BACKBONE_NAME.match(name.removeprefix(BACKBONE))]
    for name, own in state.items():
        if name in weights:
            weight = weights[name]
            is_kernel = weight.ndim == own.ndim == 4
            if is_kernel and weight.shape[-1] < own.shape[-1] and name.endswith('dwconv.weight'):
                weights[name] = weight = pad_kernel(weight, own.shape[-1])
                report.padded.append(name)
            is_stem = is_kernel and name.removeprefix(BACKBONE) == STEM
            if adapt and is_stem and weight.shape[1] == 3 != own.shape[1]:
                weights[name] = weight = adapt_stem(weight, own.shape[1])
                report.adapted.append(f'{name} from 3 to {own.shape[1]}')
            if weight.shape == own.shape:
                report.matched.append(name)
                continue
            report.mismatched.append(f'{name} {tuple(weight.shape)}, not {tuple(own.shape)}')
        elif name.endswith('num_batches_tracked'):  # absent before torch 0.4.1, and not used
            continue
        else:
            report.missing.append(name)
        if name.startswith(required):
            errors.append(name)
    message = f'{source} into {type(model).__name__}:\n  {report}'
    if errors or not report.matched:
        raise CheckpointError(
            f'cannot load {message}\n'
            f'  the checkpoint has {_describe_arch(weights)}\n  the model has {_describe_arch(state)}'
        )
    print_log(f'loading {message}', logger='current')
    return report


def _describe_arch(weights: dict[str, Tensor]) -> str:
    """Describe a RevCol by its number of columns, and the channels and layers of the first one."""
    bare = {name.removeprefix(BACKBONE): weight for name, weight in weights.items()}
    columns = {name.split('.')[0] for name in bare if name.startswith('subnet')}
    channels = [bare[name].numel() for name in bare if re.fullmatch(r'subnet0\.alpha\d+', name)]
    layers = Counter(
        name.split('.')[1] for name in bare if re.fullmatch(r'subnet0\.level\d+\.blocks\.\d+\.gamma', name)
    )
    if not columns:
        return 'no RevCol'
    arch = f'{len(columns)} columns, channels {channels}, layers {list(layers.values())}'
    stem = bare.get(STEM)
    if stem is not None and stem.ndim > 1 and stem.shape[1] != 3:
        arch = f'{arch}, in_channels {stem.shape[1]}'
    return arch


def load_backbone(
    backbone: nn.Module, source: str | Path, weights: dict[str, Tensor] | None = None
) -> LoadReport:
    """Load the backbone's weights from a checkpoint of any layout, and log what matches.

    Args:
        backbone: The model to load into.
        source: See :func:`read_checkpoint`. Weights of heads are ignored.
        weights: The :func:`model_weights` of ``source``, if it has been read.

    Returns:
        The report, which was logged.

    Raises:
        CheckpointError: If the file has no weights, a weight of the backbone is missing or has another shape,
            or the checkpoint's backbone has more weights.
    """
    weights = model_weights(read_checkpoint(source)) if weights is None else weights
    weights = {name.removeprefix(BACKBONE): weight for name, weight in weights.items()}
    report = fit_weights(weights, backbone, str(source))
    backbone.load_state_dict({name: weights[name] for name in report.matched})
    return report
