"""Published checkpoints of networks that become columns, whatever names they have for the weights."""

import re
from collections import OrderedDict

from torch import Tensor, nn

from revcol_mm.checkpoints.layouts import BACKBONE
from revcol_mm.errors import CheckpointError

from .stages import split_stages


def is_of_columns(weights: dict[str, Tensor]) -> bool:
    """Whether weights, by their names in a whole model, are of a backbone made of columns."""
    return any(name.startswith(f'{BACKBONE}subnet0.') for name in weights)


def convnext_names(weights: dict[str, Tensor], last_norm: str) -> dict[str, Tensor]:
    """MMPretrain's names, and shapes, of the weights of the authors' ConvNeXt, V1, V2 or DINOv3's."""
    renamed = {}
    for name, weight in weights.items():
        name = name.replace('.dwconv.', '.depthwise_conv.').replace('.pwconv', '.pointwise_conv')
        name = re.sub(r'^norm\.', last_norm, name)
        renamed[name] = weight.flatten() if '.grn.' in name else weight  # (1, 1, 1, C) of V2
    return renamed


def load_network(network: nn.Module, weights: dict[str, Tensor], source: str) -> None:
    """Load a published checkpoint into the network that it is of.

    Args:
        network: It. Norms of levels that the published one does not return keep their weights.
        weights: By names in the network, in a model that has it as backbone, in timm's whole one, or in the
            authors' ConvNeXt, V1, V2 or DINOv3's. Those of anything else are left out.
        source: Where they are from, for messages.

    Raises:
        CheckpointError: If a weight is missing, is too many or has another shape.
    """
    stages = split_stages(network)
    optional = {id(weight) for output in stages.outputs for weight in output.parameters()}
    network = getattr(network, 'timm_model', network)
    children, own = dict(network.named_children()), network.state_dict(keep_vars=True)
    if any('.depthwise_conv.' in name for name in own) and any('.dwconv.' in name for name in weights):
        weights = convnext_names(weights, f'norm{len(stages.stages) - 1}.')
    # timm calls the parts of a sequence 'stages' stages_0, stages_1 where it returns features.
    parts = {re.sub(r'_(\d+)$', r'.\1', child) + '.': f'{child}.' for child in children}
    named = OrderedDict()
    # model_weights gives 'stem.' the prefix in any case, for it is RevCol's, but also timm's.
    in_model = any(re.match(rf'{BACKBONE}(?!stem\.)', name) for name in weights)
    for name, weight in weights.items():
        if name.startswith(BACKBONE) or not in_model:
            name = name.removeprefix(BACKBONE).removeprefix('timm_model.')
            part = next((part for part in parts if name.startswith(part)), '')
            name = parts.get(part, '') + name.removeprefix(part)
            if name in own or name.partition('.')[0] in children:
                named[name] = weight
    named._metadata = getattr(weights, '_metadata', OrderedDict())
    required = {name for name, weight in own.items() if id(weight) not in optional}
    try:
        missing, unexpected = network.load_state_dict(named, strict=False)
        missing = [name for name in missing if name in required and not name.endswith('num_batches_tracked')]
        problem = f'missing {missing[:3]}, unexpected {unexpected[:3]}' if missing or unexpected else ''
    except RuntimeError as error:  # shapes
        problem = str(error)
    if problem:
        raise CheckpointError(f'{source} is no checkpoint of this {type(network).__name__}: {problem}')
