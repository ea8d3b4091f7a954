"""Loading published checkpoints of single networks, which name their parameters in different ways."""

import re
from collections import OrderedDict
from typing import Any

from torch import Tensor, nn

from revcol_mm.checkpoints.layouts import BACKBONE
from revcol_mm.errors import CheckpointError

from .stages import split_stages


def is_of_columns(weights: dict[str, Tensor]) -> bool:
    """Return whether weights, named as in a complete model, belong to a backbone made of columns."""
    return any(name.startswith(f'{BACKBONE}subnet0.') for name in weights)


def _rename_convnext(weights: dict[str, Tensor], last_norm: str) -> dict[str, Tensor]:
    """Convert names and shapes of the authors' ConvNeXt (V1, V2 or DINOv3's) to MMPretrain's."""
    renamed = {}
    for name, weight in weights.items():
        name = name.replace('.dwconv.', '.depthwise_conv.').replace('.pwconv', '.pointwise_conv')
        name = re.sub(r'^norm\.', last_norm, name)
        renamed[name] = weight.flatten() if '.grn.' in name else weight  # (1, 1, 1, C) in V2
    return renamed


def _rename(network: nn.Module, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Name weights as in the network. Of a whole model, only its backbone's are returned."""
    # With features_only, timm flattens the sequence 'stages' into children stages_0, stages_1, ...
    children = dict(network.named_children())
    flattened = {re.sub(r'_(\d+)$', r'.\1', child) + '.': f'{child}.' for child in children}
    # 'stem.' does not tell: `model_weights` adds the prefix to it because RevCol has a stem, but so has timm.
    is_whole_model = any(re.match(rf'{BACKBONE}(?!stem\.)', name) for name in weights)
    renamed: Any = OrderedDict()
    for name, weight in weights.items():
        if is_whole_model and not name.startswith(BACKBONE):
            continue
        name = name.removeprefix(BACKBONE).removeprefix('timm_model.')
        part = next((part for part in flattened if name.startswith(part)), '')
        renamed[flattened.get(part, '') + name.removeprefix(part)] = weight
    versions = getattr(weights, '_metadata', {})  # of modules, by which networks know keys of older versions
    if is_whole_model:
        versions = {name: each for name, each in versions.items() if f'{name}.'.startswith(BACKBONE)}
    renamed._metadata = {f'{name}.'.removeprefix(BACKBONE)[:-1]: each for name, each in versions.items()}
    return renamed


def load_network(network: nn.Module, weights: dict[str, Tensor], source: str) -> None:
    """Load a published checkpoint into a network.

    Args:
        network: The network. Output norms of all levels but the last may be missing in the checkpoint: a
            classifier does not return these levels.
        weights: Named as in the network, in a model with the network as its backbone, in timm's complete
            model, or in the authors' ConvNeXt (V1, V2 or DINOv3's). Other parts of a model are ignored. The
            network itself converts keys of older versions.
        source: Where the weights come from, for error messages.

    Raises:
        CheckpointError: If a weight is missing, unexpected or has another shape.
    """
    stages = split_stages(network, check=False)  # the backbone has checked it
    optional = {id(weight) for output in stages.outputs[:-1] for weight in output.parameters()}
    network = getattr(network, 'timm_model', network)
    own = network.state_dict(keep_vars=True)
    if any('.depthwise_conv.' in name for name in own) and any('.dwconv.' in name for name in weights):
        weights = _rename_convnext(weights, f'norm{len(stages.stages) - 1}.')
    required = {name for name, weight in own.items() if id(weight) not in optional}
    children, renamed = dict(network.named_children()), _rename(network, weights)
    # Swin V2 recomputes its tables of positions and ignores those in the checkpoint.
    required -= {*renamed, *(name for name in own if name.endswith('num_batches_tracked'))}
    try:
        missing, unexpected = network.load_state_dict(renamed, strict=False)
        missing = [name for name in missing if name in required]
        unexpected = [name for name in unexpected if name.partition('.')[0] in children]  # not of a head
        problem = f'missing {missing[:3]}, unexpected {unexpected[:3]}' if missing or unexpected else ''
    except RuntimeError as error:  # mismatched shapes
        problem = str(error)
    if problem:
        raise CheckpointError(f'{source} is not a checkpoint of this {type(network).__name__}: {problem}')
