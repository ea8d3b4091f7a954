"""Cutting ready-made networks at their levels: a stem, then stages, each on what the one before gives.

Letters: B batch, H and W image size, L levels, C_l channels and s_l stride of level l.
"""

from typing import Callable, NamedTuple, Sequence

import torch
from torch import Tensor, nn

PROBE_SIZE = 64  # height and width of the image by which channels and strides are found


class Stages(NamedTuple):
    """A network in parts; together they compute what it computes.

    Args:
        stem: From images, (B, 3, H, W), to the input of the first stage.
        stages: For each level l what maps the level below, or the stem's output, to (B, C_l, H / s_l, W /
            s_l).
        norms: For each level what the network does to a feature that it returns, but not to what the next
            stage gets; ``nn.Identity`` if that is nothing.
    """

    stem: nn.Module
    stages: Sequence[nn.Module]
    norms: Sequence[nn.Module]

    def forward(self, images: Tensor) -> list[Tensor]:
        """What the network computes: its features, (B, C_l, H / s_l, W / s_l)."""
        x, features = self.stem(images), []
        for stage, norm in zip(self.stages, self.norms):
            x = stage(x)
            features.append(norm(x))
        return features


class TokenStage(nn.Module):
    """A stage of a transformer that computes on tokens, (B, H * W, C), between feature maps.

    Args:
        embed: Downsampling: a map, or tokens and their (H, W), to tokens and their (H, W).
        blocks: The blocks, of tokens and their (H, W).
        norm: What follows the last block and is passed on.
        embeds_map: Whether ``embed`` takes a map.
        position: Takes tokens and their (H, W) behind the first block.
    """

    def __init__(
        self,
        embed: nn.Module | None,
        blocks: Sequence[nn.Module],
        norm: nn.Module | None = None,
        embeds_map: bool = False,
        position: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.embed, self.norm, self.position, self.embeds_map = embed, norm, position, embeds_map
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H', W')."""
        size = x.shape[-2:]
        if not self.embeds_map:
            x = x.flatten(2).transpose(1, 2)
        if self.embed is not None:
            x, size = self.embed(x) if self.embeds_map else self.embed(x, size)
        for index, block in enumerate(self.blocks):
            x = block(x, size)
            if index == 0 and self.position is not None:
                x = self.position(x, size)
        if self.norm is not None:
            x = self.norm(x)
        return x.transpose(1, 2).unflatten(2, tuple(size))


class TokenStem(nn.Module):
    """Patch embedding of a transformer, from images to a feature map."""

    def __init__(self, embed: nn.Module, dropout: nn.Module) -> None:
        super().__init__()
        self.embed, self.dropout = embed, dropout

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, C_0, H / s_0, W / s_0)."""
        x, size = self.embed(images)
        return self.dropout(x).transpose(1, 2).unflatten(2, tuple(size))


class TokenNorm(nn.Module):
    """A norm of tokens, on a feature map."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same."""
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def _named(net: nn.Module, pattern: str, number: int) -> list[nn.Module]:
    """Modules ``pattern`` with the number of their level in it; Identity where there is none."""
    return [getattr(net, pattern.format(level), None) or nn.Identity() for level in range(number)]


def _split_convnext(net: nn.Module) -> Stages:
    """MMPretrain's ConvNeXt, V1 and V2, and VAN-like networks: a list of downsamplings, a list of stages."""
    stem, *downs = net.downsample_layers
    stages = [net.stages[0], *(nn.Sequential(down, stage) for down, stage in zip(downs, net.stages[1:]))]
    return Stages(stem, stages, _named(net, 'norm{}', len(stages)))


def _split_resnet(net: nn.Module) -> Stages:
    """ResNet and what is derived from it: res_layers are names."""
    stem = [net.stem] if getattr(net, 'deep_stem', False) else [net.conv1, net.norm1, net.relu]
    if getattr(net, 'maxpool', None) is not None:
        stem.append(net.maxpool)
    return Stages(nn.Sequential(*stem), *_without_norms([getattr(net, name) for name in net.res_layers]))


def _split_swin(net: nn.Module) -> Stages:
    """Swin of MMPretrain, MMDetection and MMSegmentation; V1 downsamples behind a stage, V2 before it."""
    if getattr(net, 'use_abs_pos_embed', False):
        raise ValueError(
            f'{type(net).__name__} with use_abs_pos_embed cannot be split: its positions are of one size'
        )
    downs = [stage.downsample for stage in net.stages]
    if downs[0] is not None:  # behind the stage
        downs = [None, *downs[:-1]]
    stages = [TokenStage(down, stage.blocks) for down, stage in zip(downs, net.stages)]
    norms = [
        norm if isinstance(norm, nn.Identity) else TokenNorm(norm)
        for norm in _named(net, 'norm{}', len(stages))
    ]
    return Stages(TokenStem(net.patch_embed, net.drop_after_pos), stages, norms)


def _split_pyramid(net: nn.Module) -> Stages:
    """PVT of MMDetection and MiT of MMSegmentation: layers of patch embedding, blocks and norm."""
    stages = [TokenStage(embed, blocks, norm, embeds_map=True) for embed, blocks, norm in net.layers]
    return Stages(nn.Identity(), *_without_norms(stages))


def _split_twins(net: nn.Module) -> Stages:
    """Twins of MMPretrain, PCPVT and SVT."""
    stages = [
        TokenStage(embed, blocks, norm, embeds_map=True, position=position)
        for embed, blocks, norm, position in zip(
            net.patch_embeds,
            net.stages,
            _named(net, 'norm_after_stage{}', len(net.stages)),
            net.position_encodings,
        )
    ]
    return Stages(nn.Identity(), *_without_norms(stages))


def _split_sequence(net: nn.Module) -> Stages:
    """EfficientNet, MobileNet and so on: layers one after the other; a stage ends before the size is halved."""
    layers = [getattr(net, each) if isinstance(each, str) else each for each in net.layers]
    if hasattr(net, 'conv1'):
        layers.insert(0, net.conv1)
    return _cut_where_halved(layers)


def _split_timm(net: nn.Module) -> Stages:
    """timm's FeatureListNet, of ``features_only=True``: modules by name, some of which are returned."""
    parts, part = [], []
    for name, module in net.items():
        part.append(module)
        if name in net.return_layers:
            parts.append(nn.Sequential(*part))
            part = []
    return Stages(nn.Identity(), *_without_norms(parts))


def _without_norms(stages: Sequence[nn.Module]) -> tuple[Sequence[nn.Module], list[nn.Module]]:
    return stages, [nn.Identity() for _ in stages]


def _cut_where_halved(layers: Sequence[nn.Module]) -> Stages:
    """Four levels of strides 4 to 32; what is before them, of stride 2, is the stem."""
    x, ends = torch.zeros(1, 3, PROBE_SIZE, PROBE_SIZE), {}
    for index, layer in enumerate(layers):
        x = layer(x)
        ends[PROBE_SIZE // x.shape[-1]] = index + 1  # the last one of its stride
    bounds = [ends[stride] for stride in sorted(ends) if stride >= 2]
    parts = [nn.Sequential(*layers[start:end]) for start, end in zip([0, *bounds], bounds)]
    return Stages(parts[0], *_without_norms(parts[1:]))


# What a network has, and how it is split then; the first that fits counts.
SPLITTERS: list[tuple[tuple[str, ...], Callable[[nn.Module], Stages]]] = [
    (('return_layers',), _split_timm),
    (('downsample_layers', 'stages'), _split_convnext),
    (('res_layers',), _split_resnet),
    (('patch_embeds', 'position_encodings', 'stages'), _split_twins),
    (('patch_embed', 'drop_after_pos', 'stages'), _split_swin),
    (('layers', 'num_heads', 'sr_ratios'), _split_pyramid),
    (('layers',), _split_sequence),
]


def split_stages(net: nn.Module) -> Stages:
    """Cut a network at its levels.

    Networks of MMPretrain, MMDetection, MMSegmentation and timm (``features_only=True``) that have stages are
    known; another joins by a method ``split_stages()`` of its own that returns :class:`Stages`.

    Args:
        net: A network that takes (B, 3, H, W) and returns features. Its parts are used, not copied.

    Raises:
        ValueError: If it cannot be split, or the parts do not compute what it computes.
    """
    if hasattr(net, 'split_stages'):
        return net.split_stages()
    net = getattr(net, 'timm_model', net)
    for attributes, split in SPLITTERS:
        if all(hasattr(net, attribute) for attribute in attributes):
            return split(net)
    raise ValueError(
        f'{type(net).__name__} cannot be split into stages: give it a method split_stages() that returns '
        'revcol_mm.models.Stages(stem, stages, norms)'
    )


class Shapes(NamedTuple):
    """What :func:`probe` finds.

    Args:
        channels: C_l of each level.
        strides: s_l of each level.
        in_channels: Channels of each stage's input.
        in_strides: Strides of each stage's input.
    """

    channels: list[int]
    strides: list[int]
    in_channels: list[int]
    in_strides: list[int]


@torch.no_grad()
def probe(stages: Stages) -> Shapes:
    """Find channels and strides by a small image, in evaluation mode."""
    parts = nn.ModuleList([stages.stem, *stages.stages])
    modes = {module: module.training for module in parts.modules()}
    parts.eval()
    x, shapes = torch.zeros(1, 3, PROBE_SIZE, PROBE_SIZE), []
    for part in parts:
        x = part(x)
        shapes.append((x.shape[1], PROBE_SIZE // x.shape[-1]))
    for module, mode in modes.items():
        module.training = mode
    (in_channels, in_strides), (channels, strides) = zip(*shapes[:-1]), zip(*shapes[1:])
    return Shapes(list(channels), list(strides), list(in_channels), list(in_strides))
