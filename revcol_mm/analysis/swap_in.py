"""RevCol in place of the backbone of a config, as a user would edit the config by hand.

Features flow from the backbone through the neck, if there is one, to the heads. What reads them states how
many channels it reads, and that is what changes.
"""

import copy
from typing import Any, Iterator, Sequence

import torch
from mmengine.config import Config, ConfigDict
from mmengine.registry import MODELS, DefaultScope
from torch import Tensor

SIZE = (256, 128)  # of the image that tells channels and strides; all that some networks take
# What published weights of RevCol take: ImageNet's, RGB.
NORMALISATION = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375])


def swap_in(cfg: Config, backbone: dict[str, Any]) -> Config:
    """Replace every backbone of a config's model, and the channels of what reads it.

    - The new backbone gives the levels with the old one's strides; in place of a dilated one, which has the
      same stride several times, all of its levels.
    - A backbone in a backbone, such as BiSeNet's ``backbone_cfg``, is replaced there.
    - ``in_channels`` change in the neck; in heads only where what they read has other channels than before:
      without a neck, or behind one that passes features on. Which levels a head reads is its ``in_index``.
    - RoI heads that read the backbone through a stage of ResNet (C4) get a 1x1 convolution as their neck.
    - Images of three channels are normalised as for RevCol's weights; of others, their number and their
      normalisation stay. Checkpoints of the old model are left out.

    Args:
        cfg: Of MMDetection or MMSegmentation, with any backbone that can be built.
        backbone: Config of the new one, such as ``dict(type='RevCol', arch='tiny')``; not ``out_indices``.

    Returns:
        A new config.

    Raises:
        ValueError: If there is no backbone, its strides are not those of the new one's levels, or something
            that reads it cannot be followed; which is named.
    """
    if 'out_indices' in backbone:
        raise ValueError('out_indices follow from the backbone that is replaced: leave them out')
    cfg = copy.deepcopy(cfg)
    networks = list(_networks(cfg.model))
    if not networks:
        raise ValueError(f'{cfg.filename}: its model has no backbone')
    in_colour = all(network.backbone.get('in_channels', 3) == 3 for network in networks)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        for network in networks:
            _swap(network, ConfigDict(backbone))
    for node in config_nodes(cfg._cfg_dict):
        if in_colour and 'mean' in node and 'std' in node:  # a data preprocessor
            node.update({**NORMALISATION, 'to_rgb' if 'to_rgb' in node else 'bgr_to_rgb': True})
    cfg.load_from = None
    imports = cfg.get('custom_imports') or {}
    cfg.custom_imports = dict(imports, imports=[*imports.get('imports', ()), 'revcol_mm'])
    return cfg


def config_nodes(node: Any) -> Iterator[dict]:
    """All dicts of a config."""
    children = node if isinstance(node, (list, tuple)) else ()
    if isinstance(node, dict):
        yield node
        children = node.values()
    for child in children:
        yield from config_nodes(child)


def _networks(model: dict) -> Iterator[dict]:
    """What holds a backbone: the model, or parts of it such as a tracker's detector."""
    return (node for node in config_nodes(model) if 'type' in (node.get('backbone') or ()))


def _swap(network: ConfigDict, new: ConfigDict) -> None:
    """Replace the backbone of a network, in place."""
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
    if network.get('neck'):
        neck = copy.deepcopy(network.neck)
        first = network.neck[0] if isinstance(network.neck, (list, tuple)) else network.neck
        _follow(first, before, after)
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
    heads = {
        key: part
        for key, part in network.items()
        if isinstance(part, (dict, list))
        and key not in ('backbone', 'neck', 'data_preprocessor', 'train_cfg', 'test_cfg')
    }
    if _channels(before) != _channels(after) and not _follow(heads, before, after):
        raise ValueError(f'{", ".join(heads)}: nothing there reads channels {_channels(before)}')


def _channels(features: Sequence[Tensor]) -> list[int]:
    return [feature.shape[1] for feature in features]


def _run(part: dict | list, inputs: Tensor | Sequence[Tensor], device: str = 'cpu') -> tuple[Tensor, ...]:
    """Features that a backbone or a neck gives."""
    try:
        with torch.device(device), torch.no_grad():
            module = MODELS.build(copy.deepcopy(part))
            module.eval()  # of some this returns nothing
            return tuple(module(inputs))
    except Exception as error:
        name = part['type'] if isinstance(part, dict) else '+'.join(p['type'] for p in part)
        raise ValueError(f'{name} cannot be followed: {type(error).__name__}: {error}') from error


def _with_levels_of(
    name: str, before: Sequence[Tensor], new: ConfigDict, image: Tensor
) -> tuple[ConfigDict, tuple[Tensor, ...]]:
    """The new backbone's config with ``out_indices`` by the old one's features, and features like its own."""
    features = _run(new, image.to('meta'), 'meta')
    levels = [image.shape[-1] // feature.shape[-1] for feature in features]
    strides = [image.shape[-1] // feature.shape[-1] for feature in before]
    if strides == [min(stride, strides[-1]) for stride in levels]:  # dilated, from where they stay the same
        strides = levels
    if len(set(strides)) < len(strides) or not set(strides) <= set(levels):
        raise ValueError(f'{name} gives strides {strides}, {new.type} {levels}')
    indices = tuple(map(levels.index, strides))
    return ConfigDict(new, out_indices=indices), tuple(torch.zeros(features[i].shape) for i in indices)


def _follow(part: Any, before: Sequence[Tensor], after: Sequence[Tensor]) -> bool:
    """Replace what a part of a config states of features' channels, in place; tells whether it states any."""
    old, new = _channels(before), _channels(after)
    found = False
    for node in config_nodes(part):
        for key, value in node.items():
            if not key.endswith('in_channels'):
                continue
            many = isinstance(value, (list, tuple))
            if key == 'in_channels':
                index = node.get('in_index', range(len(old)) if many else -1)
            else:  # such as c1_in_channels of DeepLabV3+, of a level of the head's own choice
                index = old.index(value) if value in old else len(old)
            indices = index if many else [index]
            if max(indices) < len(old) and [old[i] for i in indices] == (list(value) if many else [value]):
                node[key] = type(value)(new[i] for i in indices) if many else new[index]
                found = True
    return found
