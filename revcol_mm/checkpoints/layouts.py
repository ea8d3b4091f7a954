"""Layouts of checkpoints: the published ones and MMEngine's."""

import re
from collections import OrderedDict
from typing import Any

from torch import Tensor

from revcol_mm.errors import CheckpointError

BACKBONE = 'backbone.'  # prefix of the backbone's names in a whole model
CLASSIFICATION_HEADS = {'cls', 'cls_blocks', 'decoder_blocks'}
_BACKBONE_NAME = re.compile(r'(?:stem|subnet\d+)\.')


def has_ema(checkpoint: dict[str, Any]) -> bool:
    """Whether a checkpoint holds weights that were averaged in training."""
    return bool(checkpoint.get('state_dict_ema') or checkpoint.get('ema_state_dict'))


def model_weights(checkpoint: dict[str, Any], ema: bool = False) -> dict[str, Tensor]:
    """The weights in a checkpoint of any layout, under their names in a whole model.

    Args:
        checkpoint: In one of the module's layouts, or itself a dict of weights.
        ema: Take the averaged weights.

    Returns:
        The weights, the backbone's prefixed 'backbone.'. Versions of modules that the checkpoint states
        in ``_metadata``, which some of MMDetection's go by, are kept.

    Raises:
        CheckpointError: If there are no weights or, with ``ema``, no averaged ones.
    """
    if ema and not has_ema(checkpoint):
        raise CheckpointError(
            "no averaged weights in the checkpoint, neither under 'state_dict_ema' (published) nor under "
            f"'ema_state_dict' (MMEngine); it holds {sorted(map(str, checkpoint))[:10]}"
        )
    # MMEngine's EMAHook swaps them: 'state_dict' is the average, 'ema_state_dict' what it is taken of.
    places = ['state_dict_ema', 'state_dict'] if ema else ['model', 'state_dict']
    weights = next((checkpoint[place] for place in places if checkpoint.get(place)), checkpoint)
    named = OrderedDict()
    for name, weight in weights.items() if isinstance(weights, dict) else ():
        if isinstance(weight, Tensor):
            name = name.removeprefix('module.')
            named[BACKBONE + name if _BACKBONE_NAME.match(name) else name] = weight
    if not named:
        raise CheckpointError(
            "no weights in the checkpoint, neither under 'model' nor under 'state_dict' nor at its top, "
            f'where it holds {sorted(map(str, checkpoint))[:10]}'
        )
    named._metadata = getattr(weights, '_metadata', OrderedDict())
    return named


def published_layout(weights: dict[str, Tensor], meta: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint in the published layout: classification's unless there are other heads.

    Args:
        weights: As :func:`model_weights` returns them.
        meta: What else the checkpoint tells; the classification layout has no place for it.
    """
    heads = {name.split('.')[0] for name in weights if not name.startswith(BACKBONE)}
    if heads <= CLASSIFICATION_HEADS:
        return {'model': {name.removeprefix(BACKBONE): weight for name, weight in weights.items()}}
    return {'meta': meta, 'state_dict': weights}
