"""Fit a checkpoint's weights to a model, and tell what became of every key."""

import re
from collections import Counter
from typing import NamedTuple

import torch.nn.functional as F
from mmengine.logging import print_log
from torch import Tensor, nn

from revcol_mm.errors import CheckpointError

from .layouts import _BACKBONE_NAME, BACKBONE, model_weights
from .reading import read_checkpoint

STEM = 'stem.0.weight'  # of a RevCol, (C, channels of the images, 4, 4)


def pad_kernel(weight: Tensor, size: int) -> Tensor:
    """Zero-pad a depthwise kernel (C, 1, k, k) to (C, 1, size, size), which leaves the function the same.

    Raises:
        ValueError: If the kernel is larger, or one of the sizes is odd and the other even.
    """
    margin, odd = divmod(size - weight.shape[-1], 2)
    if margin < 0 or odd:
        raise ValueError(f'cannot zero-pad a kernel from size {weight.shape[-1]} to {size}')
    return F.pad(weight, [margin] * 4)


def adapt_stem(weight: Tensor, in_channels: int) -> Tensor:
    """Fit the first convolution of a network for RGB, (C, 3, k, k), to images of other channels.

    As timm's ``adapt_input_conv``. For one channel the three kernels are summed: a grey image has the
    response that it has in RGB. For other numbers they are repeated, red, green, blue, red and so on, and
    multiplied by 3 / in_channels, which keeps the size of the response. That is where a training may start,
    better than at random, timm's author says; what bands beside colours are is to be learned.

    Returns:
        (C, in_channels, k, k).
    """
    if in_channels == 1:
        return weight.float().sum(1, keepdim=True).to(weight.dtype)
    repeated = weight.repeat(1, -(-in_channels // 3), 1, 1)[:, :in_channels]
    return repeated * (3 / in_channels)


class LoadReport(NamedTuple):
    """What became of the keys of a checkpoint and of a model."""

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
            f'of another shape {len(self.mismatched)}: {self.mismatched[:5]}',
            f'unexpected {len(self.unexpected)}, by module: {dict(modules)}',
        ]
        return '\n  '.join(lines)


def _describe_arch(weights: dict[str, Tensor]) -> str:
    """A RevCol's number of columns, and what the first one is like."""
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


def fit_weights(
    weights: dict[str, Tensor],
    model: nn.Module,
    source: str,
    required: str = '',
    adapt: bool = True,
) -> LoadReport:
    """Compare weights with those of a model, and log what matches.

    Depthwise kernels smaller than the model's are zero-padded, in ``weights`` (RevCol-H for segmentation is
    the 3x3 model padded to 7x7), and a stem for RGB is adapted to other channels, see :func:`adapt_stem`.

    Args:
        weights: By names in the model.
        model: What they will be loaded into.
        source: Where they are from, for messages.
        required: Prefix of the model's weights that may not be missing. '': all of them.
        adapt: Whether the model will train, and a stem may be adapted to where that starts.

    Returns:
        The report that was logged.

    Raises:
        CheckpointError: If nothing matches, a required weight is missing or has another shape, or the
            checkpoint's backbone has weights that the model's lacks.
    """
    state = model.state_dict()
    report = LoadReport([], [], [], [], [], [name for name in weights if name not in state])
    misfits = [name for name in report.unexpected if _BACKBONE_NAME.match(name.removeprefix(BACKBONE))]
    for name, own in state.items():
        if name not in weights:
            if name.endswith('num_batches_tracked'):  # in no checkpoint before torch 0.4.1; not used
                continue
            report.missing.append(name)
        else:
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
        if name.startswith(required):
            misfits.append(name)
    message = f'{source} into {type(model).__name__}:\n  {report}'
    if misfits or not report.matched:
        raise CheckpointError(
            f'cannot load {message}\n'
            f'  the checkpoint has {_describe_arch(weights)}\n  the model has {_describe_arch(state)}'
        )
    print_log(f'loading {message}', logger='current')
    return report


def load_backbone(backbone: nn.Module, source: str) -> LoadReport:
    """Load a published checkpoint, or one of ours, into a backbone, and log what was matched.

    Args:
        backbone: The model to load into.
        source: File or URL; see :func:`read_checkpoint`. Weights of heads are left out.

    Returns:
        The report that was logged.

    Raises:
        CheckpointError: If there are no weights in the file, one of the backbone is missing or has another
            shape, or the checkpoint's backbone has more of them.
    """
    weights = model_weights(read_checkpoint(source))
    weights = {name.removeprefix(BACKBONE): weight for name, weight in weights.items()}
    report = fit_weights(weights, backbone, source)
    backbone.load_state_dict({name: weights[name] for name in report.matched})
    return report
