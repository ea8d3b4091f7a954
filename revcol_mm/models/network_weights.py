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


def _select(network: nn.Module, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of the network, under their names in it, without other parts of the model."""
    children, own = dict(network.named_children()), network.state_dict()
    # With features_only, timm flattens the sequence 'stages' into children stages_0, stages_1, ...
    flattened = {re.sub(r'_(\d+)$', r'.\1', child) + '.': f'{child}.' for child in children}
    # 'stem.' does not tell: `model_weights` adds the prefix to it because RevCol has a stem, but so has timm.
    is_whole_model = any(re.match(rf'{BACKBONE}(?!stem\.)', name) for name in weights)
    selected: Any = OrderedDict()
    for name, weight in weights.items():
        if is_whole_model and not name.startswith(BACKBONE):
            continue
        name = name.removeprefix(BACKBONE).removeprefix('timm_model.')
        part = next((part for part in flattened if name.startswith(part)), '')
        name = flattened.get(part, '') + name.removeprefix(part)
        if name in own or name.partition('.')[0] in children:
            selected[name] = weight
    selected._metadata = getattr(weights, '_metadata', OrderedDict())
    return selected


def load_network(network: nn.Module, weights: dict[str, Tensor], source: str) -> None:
    """Load a published checkpoint into a network.

    Args:
        network: The network. Norms of levels that the published network does not return may be missing in
            the checkpoint.
        weights: Named as in the network, in a model with the network as its backbone, in timm's complete
            model, or in the authors' ConvNeXt (V1, V2 or DINOv3's). Other parts of a model are ignored.
        source: Where the weights come from, for error messages.

    Raises:
        CheckpointError: If a weight is missing, unexpected or has another shape.
    """
    stages = split_stages(network, check=False)  # the backbone has checked it
    optional = {id(weight) for output in stages.outputs for weight in output.parameters()}
    network = getattr(network, 'timm_model', network)
    own = network.state_dict(keep_vars=True)
    if any('.depthwise_conv.' in name for name in own) and any('.dwconv.' in name for name in weights):
        weights = _rename_convnext(weights, f'norm{len(stages.stages) - 1}.')
    required = {name for name, weight in own.items() if id(weight) not in optional}
    try:
        missing, unexpected = network.load_state_dict(_select(network, weights), strict=False)
        missing = [name for name in missing if name in required and not name.endswith('num_batches_tracked')]
        problem = f'missing {missing[:3]}, unexpected {unexpected[:3]}' if missing or unexpected else ''
    except RuntimeError as error:  # mismatched shapes
        problem = str(error)
    if problem:
        raise CheckpointError(f'{source} is not a checkpoint of this {type(network).__name__}: {problem}')
