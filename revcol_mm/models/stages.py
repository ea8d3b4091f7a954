"""Cutting ready-made networks at their levels: a stem, then stages, each on what the one before gives.

Letters: B batch, H and W image size, L levels, C_l channels and s_l stride of level l.
"""

import itertools
from contextlib import contextmanager
from typing import Callable, Iterator, NamedTuple, Sequence

import torch
from torch import Tensor, nn

from .image_channels import image_channels
from .stage_modules import ChannelsLast, TokenNorm, TokenStage, TokenStem, VitStage, VitStem, WithoutLastRow

PROBE_SIZE = 256  # height and width of the image by which sizes are found: windows of published Swins fit


class Stages(NamedTuple):
    """A network in parts; together they compute what it computes.

    Args:
        stem: From images, (B, C, H, W), to the input of the first stage.
        stages: For each level l what maps the level below, or the stem's output, to (B, C_l, H / s_l, W /
            s_l).
        outputs: For each level what the network does to a feature that it returns, but not to what the next
            stage gets, such as a norm; ``nn.Identity`` if that is nothing.
    """

    stem: nn.Module
    stages: Sequence[nn.Module]
    outputs: Sequence[nn.Module]

    def forward(self, images: Tensor) -> list[Tensor]:
        """What the network computes: its features, (B, C_l, H / s_l, W / s_l)."""
        x, features = self.stem(images), []
        for stage, output in zip(self.stages, self.outputs):
            x = stage(x)
            features.append(output(x))
        return features


def _split_vit(net: nn.Module) -> Stages:
    """MMPretrain's VisionTransformer: layers up to each that is returned, or of one that is, in four."""
    layers, ends = list(net.layers), [index + 1 for index in net.out_indices]
    if len(ends) == 1:
        ends = [round(len(layers) * part / 4) for part in range(1, 5)]
    bounds = [0, *ends]
    stages = [
        VitStage(
            layers[begin:end],
            net.ln1 if end == len(layers) and net.final_norm else None,
            net.num_extra_tokens,
        )
        for begin, end in itertools.pairwise(bounds)
    ]
    return Stages(VitStem(net), stages, [WithoutLastRow() for _ in stages])


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
    return Stages(nn.Sequential(*stem), *_as_they_are([getattr(net, name) for name in net.res_layers]))


def _split_swin(net: nn.Module) -> Stages:
    """Swin of MMPretrain, MMDetection and MMSegmentation; V1 downsamples behind a stage, V2 before it."""
    downs = [stage.downsample for stage in net.stages]
    if downs[0] is not None:  # behind the stage
        downs = [None, *downs[:-1]]
    stages = [TokenStage(down, stage.blocks) for down, stage in zip(downs, net.stages)]
    norms = _named(net, 'norm{}', len(stages))
    outputs = [norm if isinstance(norm, nn.Identity) else TokenNorm(norm) for norm in norms]
    return Stages(TokenStem(net.patch_embed, net.drop_after_pos), stages, outputs)


def _split_pyramid(net: nn.Module) -> Stages:
    """PVT of MMDetection and MiT of MMSegmentation: layers of patch embedding, blocks and norm."""
    stages = [TokenStage(embed, blocks, norm, embeds_map=True) for embed, blocks, norm in net.layers]
    return Stages(nn.Identity(), *_as_they_are(stages))


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
    return Stages(nn.Identity(), *_as_they_are(stages))


def _split_layers(layers: Sequence[nn.Module], ends: Sequence[int]) -> Stages:
    """Layers one after the other, of which those in front of ``ends`` are returned."""
    # The stem comes down to the first level's stride, once for all columns, if that leaves the stage a layer.
    strides, x = [], _image(layers[0])
    with evaluating(*layers), torch.no_grad():
        for layer in layers[: ends[0]]:
            x = layer(x)
            strides.append(PROBE_SIZE // x.shape[-1])
    start = min(strides.index(strides[-1]) + 1, len(strides) - 1)
    stem, *stages = (
        nn.Sequential(*layers[begin:end]) for begin, end in itertools.pairwise([0, start, *ends])
    )
    return Stages(stem, *_as_they_are(stages))


def _split_sequence(net: nn.Module) -> Stages:
    """EfficientNet, MobileNet and so on of MMPretrain."""
    layers = [getattr(net, each) if isinstance(each, str) else each for each in net.layers]
    before = [net.conv1] if hasattr(net, 'conv1') else []  # the layers that are counted
    return _split_layers([*before, *layers], [len(before) + index + 1 for index in net.out_indices])


def _split_timm_list(net: nn.Module) -> Stages:
    """timm's FeatureListNet: modules by name, some of which are returned."""
    ends = [index + 1 for index, name in enumerate(net) if name in net.return_layers]
    layers = list(net.values())
    if net.output_fmt == 'NHWC':
        layers = [ChannelsLast(layer, takes_images=index == 0) for index, layer in enumerate(layers)]
    return _split_layers(layers, ends)


def _split_timm_blocks(net: nn.Module) -> Stages:
    """timm's EfficientNet and MobileNet V3 with ``features_only``: stems, then numbered blocks."""
    stem = [child for name, child in net.named_children() if name != 'blocks']
    return _split_layers([*stem, *net.blocks], [len(stem) + index for index in net._stage_out_idx])


def _as_they_are(stages: Sequence[nn.Module]) -> tuple[Sequence[nn.Module], list[nn.Module]]:
    return stages, [nn.Identity() for _ in stages]


# What a network has, and how it is split then; the first that fits counts.
SPLITTERS: list[tuple[tuple[str, ...], Callable[[nn.Module], Stages]]] = [
    (('return_layers', 'output_fmt'), _split_timm_list),
    (('conv_stem', 'blocks', '_stage_out_idx'), _split_timm_blocks),
    (('downsample_layers', 'stages'), _split_convnext),
    (('res_layers',), _split_resnet),
    (('patch_embeds', 'position_encodings', 'stages'), _split_twins),
    (('patch_embed', 'drop_after_pos', 'stages'), _split_swin),
    (('patch_embed', 'pos_embed', 'layers', 'num_extra_tokens'), _split_vit),
    (('layers', 'num_heads', 'sr_ratios'), _split_pyramid),
    (('layers',), _split_sequence),
]


def split_stages(net: nn.Module) -> Stages:
    """Cut a network at its levels.

    Networks of MMPretrain, MMDetection, MMSegmentation and timm (``features_only=True``) that have stages are
    known; another joins by a method ``split_stages()`` of its own that returns :class:`Stages`.

    Args:
        net: A network that takes images, (B, C, H, W), and returns features. Its parts are used, not copied.

    Raises:
        ValueError: If it cannot be split, or the parts do not compute what it computes.
    """
    own = getattr(net, 'timm_model', net)  # MMPretrain's TIMMBackbone holds it
    fitting = (split for names, split in SPLITTERS if all(hasattr(own, name) for name in names))
    split = next(fitting, None)
    if hasattr(own, 'split_stages'):
        stages = own.split_stages()
    elif split is not None:
        stages = split(own)
    else:
        raise ValueError(
            f'{type(own).__name__} cannot be split into stages: give it a method split_stages() that returns '
            'revcol_mm.models.Stages(stem, stages, outputs)'
        )
    _compare(net, stages)
    return stages


def _image(net: nn.Module) -> Tensor:
    """An image for it, (1, C, H, W), the same every time."""
    image = torch.rand(
        1,
        image_channels(net),
        PROBE_SIZE,
        PROBE_SIZE,
        generator=torch.Generator().manual_seed(0),
        device='cpu',
    )
    param = next(net.parameters(), image)
    return image.to(param.device, param.dtype)


@torch.no_grad()
def _compare(net: nn.Module, stages: Stages) -> None:
    """Raise a ValueError unless the parts compute every feature that the network returns."""
    image = _image(net)
    with evaluating(net):
        expected, found = net(image), stages.forward(image)
    for feature in expected if isinstance(expected, (tuple, list)) else [expected]:
        if feature.ndim != 4:
            raise ValueError(
                f'{type(net).__name__} returns {tuple(feature.shape)}, no feature map: see its options, '
                "such as out_indices, features_only=True, gap_before_final_norm=False, out_type='featmap'"
            )
        # Some of timm's are channels-last.
        same = [
            each for mine in found for each in (mine, mine.permute(0, 2, 3, 1)) if each.shape == feature.shape
        ]
        if not any(mine.is_meta or torch.allclose(mine, feature, rtol=1e-4, atol=1e-5) for mine in same):
            raise ValueError(
                f'{type(net).__name__} cannot be split into stages: its parts do not compute its feature '
                f'{tuple(feature.shape)} of an image of {PROBE_SIZE} x {PROBE_SIZE}'
            )


@contextmanager
def evaluating(*modules: nn.Module) -> Iterator[None]:
    """Put modules into evaluation mode for a while."""
    modes = {part: part.training for module in modules for part in module.modules()}
    try:
        for module in modules:
            module.eval()
        yield
    finally:
        for part, mode in modes.items():
            part.training = mode


class Shapes(NamedTuple):
    """What :func:`probe` finds, of each level.

    Args:
        channels: C_l.
        in_channels: Channels of the stage's input.
        step: Stride of the stage.
        out_channels: Channels of what is returned.
        out_strides: Strides of what is returned, s_l.
    """

    channels: list[int]
    in_channels: list[int]
    steps: list[int]
    out_channels: list[int]
    out_strides: list[int]


@torch.no_grad()
def probe(stages: Stages) -> Shapes:
    """Find channels and strides by a small image, in evaluation mode."""
    shapes = Shapes([], [], [], [], [])
    with evaluating(stages.stem, *stages.stages, *stages.outputs):
        x = stages.stem(_image(nn.ModuleList([stages.stem, *stages.stages])))
        for stage, output in zip(stages.stages, stages.outputs):
            feature = stage(x)
            returned = output(feature)
            shapes.channels.append(feature.shape[1])
            shapes.in_channels.append(x.shape[1])
            shapes.steps.append(x.shape[-1] // feature.shape[-1])
            shapes.out_channels.append(returned.shape[1])
            shapes.out_strides.append(PROBE_SIZE // returned.shape[-1])
            x = feature
    return shapes
