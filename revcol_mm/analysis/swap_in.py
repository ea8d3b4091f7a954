"""Replacement of a config's backbone by RevCol, with the edits that a user would make by hand.

Features pass from the backbone through an optional neck to the heads. The config of each of these states the
number of channels of its inputs (``in_channels``), which must be adapted to the new backbone.
"""

import copy
from contextlib import nullcontext
from typing import Any, ContextManager, Iterator, Sequence

import torch
from mmengine.config import Config, ConfigDict
from mmengine.registry import MODELS, DefaultScope
from torch import Tensor

from revcol_mm.models.without_weights import without_weights

SIZE = (256, 128)  # image for measuring channels and strides; some networks accept no other size
# ImageNet's normalisation of RGB images, which RevCol's published weights expect.
NORMALISATION = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375])


def swap_in(cfg: Config, backbone: dict[str, Any]) -> Config:
    """Replace every backbone of a config's model and adapt the input channels of necks and heads.

    - ``out_indices`` select the levels with the strides of the old backbone's features. A dilated backbone,
      which repeats its last stride, is replaced by all levels.
    - A backbone inside a backbone, such as BiSeNet's ``backbone_cfg``, is replaced there.
    - ``in_channels`` change in the neck, and in heads if the channels of their inputs changed: without a
      neck, or behind a neck that passes features on. ``in_index`` determines which levels a head reads.
    - RoI heads with a shared ResNet stage (C4) get a 1x1 convolution as their neck.
    - RGB images are normalised for RevCol's published weights. Other images keep their number of channels and
      their normalisation. References to checkpoints of the old model are removed.

    Args:
        cfg: Config of MMDetection or MMSegmentation with any backbone that can be built.
        backbone: Config of the new backbone without ``out_indices``, such as
            ``dict(type='RevCol', arch='tiny')``.

    Returns:
        A new config.

    Raises:
        ValueError: If there is no backbone, the new backbone lacks a stride of the old one, or the channels
            of a neck or head cannot be determined.
    """
    if 'out_indices' in backbone:
        raise ValueError('leave out_indices out: they are chosen by the strides of the replaced backbone')
    cfg = copy.deepcopy(cfg)
    networks = list(_networks(cfg.model))
    if not networks:
        raise ValueError(f'{cfg.filename}: its model has no backbone')
    in_colour = all(network.backbone.get('in_channels', 3) == 3 for network in networks)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        for network in networks:
            before, after = _replace_backbone(network, ConfigDict(backbone))
            _adapt_neck_and_heads(network, before, after)
    for node in config_nodes(cfg._cfg_dict):
        if in_colour and 'mean' in node and 'std' in node:  # a data preprocessor
            node.update({**NORMALISATION, 'to_rgb' if 'to_rgb' in node else 'bgr_to_rgb': True})
    cfg.load_from = None
    imports = cfg.get('custom_imports') or {}
    cfg.custom_imports = dict(imports, imports=[*imports.get('imports', ()), 'revcol_mm'])
    return cfg


def config_nodes(node: Any) -> Iterator[dict]:
    """Yield all dicts in a config, recursively."""
    children = node if isinstance(node, (list, tuple)) else ()
    if isinstance(node, dict):
        yield node
        children = node.values()
    for child in children:
        yield from config_nodes(child)


def _networks(model: dict) -> Iterator[dict]:
    """Yield the model and those of its parts that have a backbone, such as the detector of a tracker."""
    return (node for node in config_nodes(model) if 'type' in (node.get('backbone') or ()))


def _replace_backbone(network: ConfigDict, new: ConfigDict) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    """Replace the backbone of a network, in place.

    Returns:
        The features of the old and of the new backbone.
    """
    outer = copy.deepcopy(network.backbone)
    old = outer.get('backbone_cfg', outer)
    in_channels = old.get('in_channels', 3)
    image = torch.zeros(1, in_channels, *SIZE)
    if in_channels != 3:
        new.setdefault('in_channels', in_channels)
    before = _run(old, image)
    new, after = _with_levels_of(old.type, before, new, image)
    if old is outer:
        network.backbone = new
    else:
        channels = dict(zip(_channels(before), _channels(after)))
        for key, value in outer.items():
            if isinstance(value, (list, tuple)) and value and set(value) <= set(channels):
                network.backbone[key] = type(value)(channels[number] for number in value)
        network.backbone.backbone_cfg = new
        before, after = _run(outer, image), _run(network.backbone, image)
    if 'pretrained' in network:
        network.pretrained = None
    if 'checkpoint' in (network.get('init_cfg') or ()):
        network.init_cfg = None
    return before, after


def _adapt_neck_and_heads(network: ConfigDict, before: Sequence[Tensor], after: Sequence[Tensor]) -> None:
    """Adapt the neck and the heads of a network to new features of its backbone, in place."""
    if network.get('neck'):
        neck = copy.deepcopy(network.neck)
        adapt_in_channels(readers(network), _channels(before), _channels(after))
        before, after = _run(neck, before), _run(network.neck, after)
    elif 'shared_head' in network.get('roi_head', {}):
        network.neck = dict(
            type='ChannelMapper',
            in_channels=_channels(after),
            out_channels=before[0].shape[1],
            kernel_size=1,
            num_outs=len(after),
        )
        return
    heads, old, new = readers({**network, 'neck': None}), _channels(before), _channels(after)
    if old != new and not adapt_in_channels(heads, old, new):
        raise ValueError(f'no in_channels in {", ".join(heads)} match the channels {old}')


def readers(network: dict) -> dict:
    """Return the parts of a network that read its backbone: the first neck or, without one, the heads."""
    if network.get('neck'):
        return network['neck'][0] if isinstance(network['neck'], (list, tuple)) else network['neck']
    return {
        key: part
        for key, part in network.items()
        if isinstance(part, (dict, list))
        and key not in ('backbone', 'neck', 'data_preprocessor', 'train_cfg', 'test_cfg')
    }


def _channels(features: Sequence[Tensor]) -> list[int]:
    return [feature.shape[1] for feature in features]


def _run(
    part: dict | list, inputs: Tensor | Sequence[Tensor], context: ContextManager | None = None
) -> tuple[Tensor, ...]:
    """Build a backbone or a neck, in a context, and return its features."""
    try:
        with context or nullcontext(), torch.no_grad():
            module = MODELS.build(copy.deepcopy(part))
            module.eval()  # returns None for some modules
            return tuple(module(inputs))
    except Exception as error:
        name = part['type'] if isinstance(part, dict) else '+'.join(p['type'] for p in part)
        raise ValueError(f'{name} cannot be built or run: {type(error).__name__}: {error}') from error


def _with_levels_of(
    name: str, before: Sequence[Tensor], new: ConfigDict, image: Tensor
) -> tuple[ConfigDict, tuple[Tensor, ...]]:
    """Choose ``out_indices`` of the new backbone by the strides of the old one's features.

    Returns:
        The new backbone's config, and features of zeros with the shapes of its features.
    """
    features = _run(new, image.to('meta'), without_weights())
    levels = [image.shape[-1] // feature.shape[-1] for feature in features]
    strides = [image.shape[-1] // feature.shape[-1] for feature in before]
    if strides == [min(stride, strides[-1]) for stride in levels]:  # dilated: the last stride is repeated
        strides = levels
    if len(set(strides)) < len(strides) or not set(strides) <= set(levels):
        raise ValueError(
            f'{name} has strides {strides}, which {new.type} with strides {levels} cannot reproduce'
        )
    indices = tuple(map(levels.index, strides))
    return ConfigDict(new, out_indices=indices), tuple(torch.zeros(features[i].shape) for i in indices)


def adapt_in_channels(part: Any, old: Sequence[int], new: Sequence[int]) -> bool:
    """Replace ``in_channels`` in a part of a config, in place; return whether any was found.

    Args:
        part: Config of a neck or of heads.
        old: Channels of the features that the part reads now.
        new: Channels of those that it will read.
    """
    found = False
    for node in config_nodes(part):
        for key, value in node.items():
            if not key.endswith('in_channels'):
                continue
            many = isinstance(value, (list, tuple))
            if key == 'in_channels':
                index = node.get('in_index', range(len(old)) if many else -1)
            else:  # a level that the head chooses itself, such as c1_in_channels of DeepLabV3+
                index = old.index(value) if value in old else len(old)
            indices = index if many else [index]
            if max(indices) < len(old) and [old[i] for i in indices] == (list(value) if many else [value]):
                node[key] = type(value)(new[i] for i in indices) if many else new[index]
                found = True
    return found
