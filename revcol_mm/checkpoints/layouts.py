"""Layouts of checkpoints: the published ones, and MMEngine's, which this package writes.

In each of them, names of weights may be prefixed with 'module.':

- Published classification: weights under 'model'; names in the backbone have no prefix, and the heads are
  ``cls.*``, or ``cls_blocks.*`` and ``decoder_blocks.*``. EMA weights, if any, are under 'state_dict_ema'.
- Published detection and segmentation (MMCV 1): weights under 'state_dict'; names in the backbone start with
  'backbone.'. Heads have the same names in MMDetection 2 and 3, and in MMSegmentation 0 and 1;
  ``tests/test_checkpoint.py`` checks this.
- MMEngine: as the previous one. EMA weights, if any, are those under 'state_dict'.
"""

import re
from collections import OrderedDict
from typing import Any

from torch import Tensor

from revcol_mm.errors import CheckpointError

BACKBONE = 'backbone.'  # prefix of the backbone's names in a whole model
BACKBONE_NAME = re.compile(r'(?:stem|subnet\d+)\.')  # start of a name in RevCol, without that prefix
CLASSIFICATION_HEADS = {'cls', 'cls_blocks', 'decoder_blocks'}


def has_ema(checkpoint: dict[str, Any]) -> bool:
    """Return whether a checkpoint holds EMA weights."""
    return bool(checkpoint.get('state_dict_ema') or checkpoint.get('ema_state_dict'))


def model_weights(checkpoint: dict[str, Any], ema: bool = False) -> dict[str, Tensor]:
    """Return the weights in a checkpoint of any layout, under their names in a whole model.

    Args:
        checkpoint: In one of the module's layouts, or a bare state dict.
        ema: Return the EMA weights.

    Returns:
        A state dict in which names of the backbone start with 'backbone.'. The module versions in its
        ``_metadata``, which some modules of MMDetection read when they load a state dict, are kept.

    Raises:
        CheckpointError: If there are no weights or, with ``ema``, no EMA weights.
    """
    if ema and not has_ema(checkpoint):
        raise CheckpointError(
            "no averaged weights in the checkpoint, neither under 'state_dict_ema' (published) nor under "
            f"'ema_state_dict' (MMEngine); it holds {sorted(map(str, checkpoint))[:10]}"
        )
    # MMEngine's EMAHook swaps the two: it saves the average as 'state_dict', and the weights in training as
    # 'ema_state_dict'.
    places = ['state_dict_ema', 'state_dict'] if ema else ['model', 'state_dict']
    weights = next((checkpoint[place] for place in places if checkpoint.get(place)), checkpoint)
    named: Any = OrderedDict()  # to which nn.Module.state_dict, too, adds _metadata
    for name, weight in weights.items() if isinstance(weights, dict) else ():
        if isinstance(weight, Tensor):
            name = name.removeprefix('module.')
            named[BACKBONE + name if BACKBONE_NAME.match(name) else name] = weight
    if not named:
        raise CheckpointError(
            "no weights in the checkpoint, neither under 'model' or 'state_dict' nor at its top level, "
            f'which holds {sorted(map(str, checkpoint))[:10]}'
        )
    named._metadata = getattr(weights, '_metadata', OrderedDict())
    return named


def published_layout(weights: dict[str, Tensor], meta: dict[str, Any]) -> dict[str, Any]:
    """Return a checkpoint in the published layout for the heads that the weights have.

    Args:
        weights: As returned by :func:`model_weights`.
        meta: Metadata of the checkpoint; dropped in the classification layout, which has no place for them.
    """
    heads = {name.split('.')[0] for name in weights if not name.startswith(BACKBONE)}
    if heads <= CLASSIFICATION_HEADS:
        return {'model': {name.removeprefix(BACKBONE): weight for name, weight in weights.items()}}
    return {'meta': meta, 'state_dict': weights}
