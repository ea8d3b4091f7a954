"""Splitting existing networks into a stem and stages, each of which takes the output of the previous one.

Letters: B batch, H and W image size, L levels, C_l channels and s_l stride of level l.
"""

import itertools
from contextlib import contextmanager
from typing import Callable, ContextManager, Iterator, NamedTuple, Sequence

import torch
from torch import Tensor, nn

from revcol_mm.any_module import AnyModule
from revcol_mm.ops.call import training_modes

from .image_channels import image_channels
from .stage_modules import ChannelsLast, TokenNorm, TokenStage, TokenStem, VitStage, VitStem, WithoutLastRow

PROBE_SIZE = 256  # side of the image used to find shapes; a multiple of the windows of published Swins


class Stages(NamedTuple):
    """The parts of a network, which together compute its features.

    Args:
        stem: Maps images, (B, C, H, W), to the input of the first stage.
        stages: For each level l, a module that maps the level below, or the stem's output, to
            (B, C_l, H / s_l, W / s_l).
        outputs: For each level, what the network applies to a feature before returning it, but not before
            passing it on to the next stage, such as a norm; otherwise ``nn.Identity``.
    """

    stem: nn.Module
    stages: Sequence[nn.Module]
    outputs: Sequence[nn.Module]

    def forward(self, images: Tensor) -> list[Tensor]:
        """Compute the network's features, (B, C_l, H / s_l, W / s_l)."""
        x, features = self.stem(images), []
        for stage, output in zip(self.stages, self.outputs):
            x = stage(x)
            features.append(output(x))
        return features


def _without_outputs(stem: nn.Module, stages: Sequence[nn.Module]) -> Stages:
    return Stages(stem, stages, [nn.Identity() for _ in stages])


def _numbered(net: AnyModule, pattern: str, number: int) -> list[nn.Module]:
    """Return the attributes ``pattern.format(0)``, ...; nn.Identity for those that the network lacks."""
    return [getattr(net, pattern.format(level), None) or nn.Identity() for level in range(number)]


def _split_vit(net: AnyModule) -> Stages:
    """Split MMPretrain's VisionTransformer after each returned layer; four equal parts if one is returned."""
    layers, ends = list(net.layers), [index + 1 for index in net.out_indices]
    if len(ends) == 1:
        ends = [round(len(layers) * part / 4) for part in range(1, 5)]
    stages = []
    for begin, end in itertools.pairwise([0, *ends]):
        norm = net.ln1 if end == len(layers) and net.final_norm else None
        stages.append(VitStage(layers[begin:end], norm, net.num_extra_tokens))
    return Stages(VitStem(net), stages, [WithoutLastRow() for _ in stages])


def _split_convnext(net: AnyModule) -> Stages:
    """Split MMPretrain's ConvNeXt (V1 and V2) and networks like VAN: lists of downsamplings and of stages."""
    stem, *downs = net.downsample_layers
    stages = [net.stages[0], *(nn.Sequential(down, stage) for down, stage in zip(downs, net.stages[1:]))]
    return Stages(stem, stages, _numbered(net, 'norm{}', len(stages)))


def _split_resnet(net: AnyModule) -> Stages:
    """Split ResNet and networks derived from it, whose ``res_layers`` are attribute names."""
    stem = [net.stem] if getattr(net, 'deep_stem', False) else [net.conv1, net.norm1, net.relu]
    if getattr(net, 'maxpool', None) is not None:
        stem.append(net.maxpool)
    return _without_outputs(nn.Sequential(*stem), [getattr(net, name) for name in net.res_layers])


def _split_swin(net: AnyModule) -> Stages:
    """Split Swin of MMPretrain, MMDetection and MMSegmentation."""
    downs = [stage.downsample for stage in net.stages]
    if downs[0] is not None:  # V1 downsamples at the end of a stage, V2 at the beginning
        downs = [None, *downs[:-1]]
    stages = [TokenStage(down, stage.blocks) for down, stage in zip(downs, net.stages)]
    norms = _numbered(net, 'norm{}', len(stages))
    outputs = [norm if isinstance(norm, nn.Identity) else TokenNorm(norm) for norm in norms]
    return Stages(TokenStem(net.patch_embed, net.drop_after_pos), stages, outputs)


def _split_pyramid(net: AnyModule) -> Stages:
    """Split PVT of MMDetection and MiT of MMSegmentation: layers of (patch embedding, blocks, norm)."""
    stages = [TokenStage(embed, blocks, norm, embeds_map=True) for embed, blocks, norm in net.layers]
    return _without_outputs(nn.Identity(), stages)


def _split_twins(net: AnyModule) -> Stages:
    """Split MMPretrain's Twins, PCPVT and SVT."""
    norms = _numbered(net, 'norm_after_stage{}', len(net.stages))
    parts = zip(net.patch_embeds, net.stages, norms, net.position_encodings, net.position_encoding_drops)
    stages = [
        TokenStage(embed, blocks, norm, embeds_map=True, position=position, dropout=dropout)
        for embed, blocks, norm, position, dropout in parts
    ]
    return _without_outputs(nn.Identity(), stages)


def _split_layers(layers: Sequence[nn.Module], ends: Sequence[int]) -> Stages:
    """Split a sequence of layers before each index in ``ends``."""
    # All columns share the stem, so it takes every layer down to the first level's stride, but leaves one
    # layer for the first stage.
    strides, x = [], _probe_image(layers[0])
    with evaluating(*layers), torch.no_grad():
        for layer in layers[: ends[0]]:
            x = layer(x)
            strides.append(PROBE_SIZE // x.shape[-1])
    start = min(strides.index(strides[-1]) + 1, len(strides) - 1)
    stem, *stages = (
        nn.Sequential(*layers[begin:end]) for begin, end in itertools.pairwise([0, start, *ends])
    )
    return _without_outputs(stem, stages)


def _split_sequence(net: AnyModule) -> Stages:
    """Split EfficientNet, MobileNet and similar networks of MMPretrain."""
    layers = [getattr(net, each) if isinstance(each, str) else each for each in net.layers]
    before = [net.conv1] if hasattr(net, 'conv1') else []  # out_indices do not count it
    return _split_layers([*before, *layers], [len(before) + index + 1 for index in net.out_indices])


def _split_timm_list(net: AnyModule) -> Stages:
    """Split timm's FeatureListNet: named modules, some of which are returned."""
    ends = [index + 1 for index, name in enumerate(net) if name in net.return_layers]
    layers = list(net.values())
    if net.output_fmt == 'NHWC':
        layers = [ChannelsLast(layer, takes_images=index == 0) for index, layer in enumerate(layers)]
    return _split_layers(layers, ends)


def _split_timm_blocks(net: AnyModule) -> Stages:
    """Split timm's EfficientNet and MobileNet V3 with ``features_only``: stem layers, then blocks."""
    stem = [child for name, child in net.named_children() if name != 'blocks']
    return _split_layers([*stem, *net.blocks], [len(stem) + index for index in net._stage_out_idx])


# A network is split by the first function whose attribute names it has.
SPLITTERS: list[tuple[tuple[str, ...], Callable[[AnyModule], Stages]]] = [
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


def split_stages(net: AnyModule, check: bool = True) -> Stages:
    """Split a network into its stem and stages.

    Supported are multi-stage networks of MMPretrain, MMDetection, MMSegmentation and timm
    (``features_only=True``), and networks with a method ``split_stages()`` that returns :class:`Stages`.

    Args:
        net: A network that takes images, (B, C, H, W), and returns features. Its parts are not copied.
        check: Whether to run the network and its parts, to compare their features.

    Raises:
        ValueError: If the network cannot be split, or ``check`` finds other features.
    """
    own: AnyModule = getattr(net, 'timm_model', net)  # MMPretrain's TIMMBackbone wraps a timm model
    name = type(own).__name__
    remedy = 'give it a method split_stages() that returns revcol_mm.models.Stages(stem, stages, outputs)'
    splitters = (split for names, split in SPLITTERS if all(hasattr(own, each) for each in names))
    splitter = next(splitters, None)
    if hasattr(own, 'split_stages'):
        splitter = type(own).split_stages
    if splitter is None:
        raise ValueError(f'{name} cannot be split into stages: {remedy}')
    try:
        stages = splitter(own)
        if check:
            _check_features(net, stages)
    except ValueError:
        raise
    except Exception as error:  # a network that only looks like one that can be split may fail in any way
        raise ValueError(
            f'{name} cannot be split into stages: {type(error).__name__}: {error} (it is run on an image of '
            f'{PROBE_SIZE} x {PROBE_SIZE}); set its options so that it takes images of any size, or {remedy}'
        ) from error
    return stages


def _probe_image(net: AnyModule) -> Tensor:
    """Return an image, (1, C, H, W), on the network's device; the same in every call."""
    shape, generator = (image_channels(net), PROBE_SIZE, PROBE_SIZE), torch.Generator().manual_seed(0)
    image = torch.rand(1, *shape, generator=generator, device='cpu')
    param = next(net.parameters(), image)
    return image.to(param.device, param.dtype)


@torch.no_grad()
def _check_features(net: AnyModule, stages: Stages) -> None:
    """Check that the parts compute every feature that the network returns; raise a ValueError otherwise."""
    image = _probe_image(net)
    with evaluating(net), _perturbed(net):
        expected, actual = net(image), stages.forward(image)
    for feature in expected if isinstance(expected, (tuple, list)) else [expected]:
        if feature.ndim != 4:
            raise ValueError(
                f'{type(net).__name__} returns {tuple(feature.shape)}, not a feature map: set options like '
                "out_indices, features_only=True, gap_before_final_norm=False, out_type='featmap'"
            )
        # Some networks of timm return channels-last features.
        candidates = [each for own in actual for each in (own, own.permute(0, 2, 3, 1))]
        if not any(
            own.shape == feature.shape and (own.is_meta or torch.allclose(own, feature, rtol=1e-4, atol=1e-5))
            for own in candidates
        ):
            raise ValueError(
                f'{type(net).__name__} cannot be split into stages: its parts do not compute its feature '
                f'{tuple(feature.shape)} of an image of {PROBE_SIZE} x {PROBE_SIZE}'
            )


@contextmanager
def _perturbed(net: nn.Module) -> Iterator[None]:
    """Temporarily add noise to all parameters: almost zero, they would hide that a part is missing."""
    generator = torch.Generator().manual_seed(0)
    before = {param: param.detach().clone() for param in net.parameters()}
    try:
        for param in before:
            noise = torch.randn(param.shape, generator=generator, device='cpu')
            param.add_(noise.to(param.device, param.dtype), alpha=0.02)
        yield
    finally:
        for param, value in before.items():
            param.copy_(value)


def evaluating(*modules: nn.Module) -> ContextManager[None]:
    """Put modules into evaluation mode inside the context and restore every submodule's mode afterwards."""
    return training_modes({part: False for module in modules for part in module.modules()})


class LevelShape(NamedTuple):
    """Channels and strides of one level."""

    in_channels: int  # of the stage's input
    channels: int  # of the stage's output
    step: int  # stride of the stage relative to its input
    out_channels: int  # of the returned feature
    out_stride: int  # of the returned feature


@torch.no_grad()
def probe(stages: Stages) -> list[LevelShape]:
    """Find the shapes of all levels with an image, in evaluation mode.

    Raises:
        ValueError: If the stride of a level does not divide the side of the image, such as 14 of DINOv2.
    """
    shapes = []
    with evaluating(stages.stem, *stages.stages, *stages.outputs):
        x = stages.stem(_probe_image(nn.ModuleList([stages.stem, *stages.stages])))
        for level, (stage, output) in enumerate(zip(stages.stages, stages.outputs)):
            feature = stage(x)
            returned = output(feature)
            side = returned.shape[-1]
            if PROBE_SIZE % side:
                raise ValueError(
                    f'level {level} has {side} positions in a row of {PROBE_SIZE} pixels: its stride must '
                    'divide the number of pixels'
                )
            step, stride = x.shape[-1] // feature.shape[-1], PROBE_SIZE // side
            shapes.append(LevelShape(x.shape[1], feature.shape[1], step, returned.shape[1], stride))
            x = feature
    return shapes
