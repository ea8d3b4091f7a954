"""Columns made of copies of any multi-stage network, connected by reversible couplings.

The paper claims that the unit "can be composed with any single-column network" (RevCol, section 3.1). A row
of copies of one pretrained network, in which each stage reads the previous copy, comes from CBNet (arXiv
2107.00420).

Letters: B batch, C_l channels of level l, H_l and W_l its size.
"""

import copy
import re
from typing import Iterator, Sequence

from mmengine.registry import MODELS
from torch import Tensor, nn

from revcol_mm.any_module import AnyModule
from revcol_mm.checkpoints.fitting import load_backbone
from revcol_mm.checkpoints.layouts import BACKBONE, model_weights
from revcol_mm.checkpoints.reading import read_checkpoint

from ..image_channels import image_channels
from ..layers import Column, LayerNorm2d, LightLevel, StageLevel
from ..network_weights import is_of_columns, load_network
from ..stages import LevelShape, Stages, probe, split_stages
from .column_backbone import ColumnBackbone

MODES = ('copies', 'light')


def _build_columns(
    stages: Stages, shapes: Sequence[LevelShape], num_columns: int, mode: str, light_blocks: int
) -> list[Column]:
    channels, last = [shape.channels for shape in shapes], len(shapes) - 1
    lateral = [(level - 1 if level else None,) for level in range(last + 1)]
    fused = [(*below, level + 1) if level < last else below for level, below in enumerate(lateral)]

    def build_level(level: int) -> nn.Module:
        sizes = shapes[level].in_channels, channels[level]
        above = channels[level + 1] if level < last else None
        if mode == 'copies':
            return StageLevel(copy.deepcopy(stages.stages[level]), *sizes, above)
        return LightLevel(*sizes, shapes[level].step, above, light_blocks)

    columns = [Column(stages.stages, lateral, channels)]
    for _ in range(num_columns - 1):
        levels = [build_level(level) for level in range(last + 1)]
        columns.append(Column(levels, fused, channels))
    return columns


def simple_pyramid(
    outputs: Sequence[nn.Module], channels: int, stride: int
) -> tuple[Sequence[nn.Module], list[int]]:
    """Resize four features of the same stride to four strides (ViTDet, arXiv 2203.16527, section 3).

    Args:
        outputs: Modules applied to each feature before resizing.
        channels: Channels of the features.
        stride: Stride s of the features.

    Returns:
        The modules with resizing appended, and the strides s / 4, s / 2, s and 2 s.

    Raises:
        ValueError: If there are not four features.
    """
    if len(outputs) != 4:
        raise ValueError(f'a network with one stride for all levels must return 4 levels, got {len(outputs)}')
    up = [nn.ConvTranspose2d(channels, channels, 2, 2) for _ in range(3)]
    resizings = (
        nn.Sequential(up[0], LayerNorm2d(channels, eps=1e-6), nn.GELU(), up[1]),
        up[2],
        nn.Identity(),
        nn.MaxPool2d(2),
    )
    modules = [nn.Sequential(output, resizing) for output, resizing in zip(outputs, resizings)]
    return modules, [stride // 4, stride // 2, stride, 2 * stride]


@MODELS.register_module()
class ReversibleColumns(ColumnBackbone):
    """N columns of L levels made from one network with L stages.

    With the weights of one network in every column (``init_cfg``, ``load_from``, or a module as ``net``) it
    initially computes the features of that network, up to rounding, for any number of columns: the first
    column is the network; later columns are copies of it, mixed with the previous column, and their
    connections from higher levels are initialised to zero.

    Args:
        net: Config of a network that :func:`revcol_mm.models.split_stages` can split, such as
            ``dict(type='mmpretrain.SwinTransformer', arch='tiny', out_indices=(0, 1, 2, 3))``; or a network.
        num_columns: Number of columns N.
        mode: 'copies', or 'light': columns after the first have ``light_blocks`` ConvNeXt blocks per level.
        light_blocks: Blocks per level of light columns.
        save_memory, out_indices, frozen_columns: See :class:`ColumnBackbone`; by default all levels are
            returned.
        init_cfg: ``dict(type='Pretrained', checkpoint=...)`` loads a published checkpoint of the single
            network, or a checkpoint of this backbone. Only with the config of a network.

    Raises:
        ValueError: If an argument is invalid or the network cannot be split.
    """

    def __init__(
        self,
        net: dict | nn.Module,
        num_columns: int = 2,
        mode: str = 'copies',
        light_blocks: int = 1,
        save_memory: bool = False,
        out_indices: Sequence[int] | None = None,
        frozen_columns: int = 0,
        init_cfg: dict | None = None,
    ) -> None:
        if mode not in MODES:
            raise ValueError(f'mode must be one of {", ".join(MODES)}, got {mode!r}')
        for name, number in dict(num_columns=num_columns, light_blocks=light_blocks).items():
            if not isinstance(number, int) or number < 1:
                raise ValueError(f'{name} must be a positive integer, got {number}')
        if mode == 'copies' and light_blocks != 1:
            raise ValueError(f"light_blocks={light_blocks} needs mode='light'")
        if init_cfg and (not isinstance(init_cfg, dict) or init_cfg.get('type') != 'Pretrained'):
            raise ValueError(
                "init_cfg must be dict(type='Pretrained', checkpoint=...), got "
                f'{init_cfg}; other initialisations belong into net'
            )
        is_config = isinstance(net, dict)
        if init_cfg and not is_config:
            raise ValueError('init_cfg needs the config of a network as net; a module keeps its weights')
        network: AnyModule = MODELS.build(copy.deepcopy(net)) if is_config else net
        if save_memory and any(getattr(module, 'with_cp', False) for module in network.modules()):
            raise ValueError('net has with_cp=True and the backbone save_memory=True: use one of them')
        network.train()  # `_always_eval` below are the modules that stay in evaluation mode, as by norm_eval
        stages = split_stages(network)
        shapes = probe(stages)
        columns = _build_columns(stages, shapes, num_columns, mode, light_blocks)
        outputs, strides = stages.outputs, [shape.out_stride for shape in shapes]
        out_strides, has_pyramid = strides, len(strides) > 1 and len(set(strides)) == 1
        if has_pyramid:
            outputs, out_strides = simple_pyramid(outputs, shapes[0].channels, strides[0])
        super().__init__(
            stages.stem,
            columns,
            [shape.channels for shape in shapes],
            strides,
            tuple(range(len(strides)) if out_indices is None else out_indices),
            frozen_columns,
            save_memory,
            image_channels(network),
            init_cfg,
        )
        self.net, self.mode, self.has_pyramid = net if is_config else None, mode, has_pyramid
        self.out_channels = tuple(shapes[level].out_channels for level in self.out_indices)
        self.out_strides = tuple(out_strides[level] for level in self.out_indices)
        self.min_size = max(out_strides)
        self.outputs = nn.ModuleDict({str(level): outputs[level] for level in {*self.out_indices}})
        self._always_eval = [name for name, module in self.named_modules() if not module.training]
        network_depths, self._num_depths = _network_depths(network, stages)
        depths = ((name, network_depths.get(id(param))) for name, param in self.named_parameters())
        self._depths = {name: depth for name, depth in depths if depth is not None}

    def train(self, mode: bool = True) -> 'ReversibleColumns':
        """Set training mode; modules that the network keeps in evaluation mode stay in it."""
        super().train(mode)
        for name in self._always_eval:  # by name: conversion to SyncBN replaces modules
            self.get_submodule(name).training = False
        return self

    def finish(self, level: int, feature: Tensor) -> Tensor:
        """Apply what the network applies to a feature before returning it, such as a norm."""
        return self.outputs[str(level)](feature)

    def forward_columns(self, x: Tensor) -> Iterator[list[Tensor]]:
        """See :meth:`ColumnBackbone.forward_columns`; light columns need sizes divisible by the stride."""
        if self.mode == 'light' and any(side % self.min_size for side in x.shape[-2:]):
            raise ValueError(
                f'light columns take images whose height and width are multiples of {self.min_size}, got '
                f'{tuple(x.shape[-2:])}'
            )
        return super().forward_columns(x)

    def init_weights(self) -> None:
        """Load the checkpoint of ``init_cfg`` into every column, or initialise each column independently.

        A network that was passed as a module keeps its weights.

        Raises:
            FileNotFoundError, CheckpointError: See :func:`revcol_mm.checkpoints.reading.read_checkpoint`.
            CheckpointError: If a weight of the network is missing, unexpected or has another shape.
        """
        self._is_init = True
        if self.net is None:
            return
        if self.init_cfg:
            source = self.init_cfg['checkpoint']
            weights = model_weights(read_checkpoint(source))
            if is_of_columns(weights):
                load_backbone(self, source, weights)
            else:
                self.load_network(weights, source)
        else:
            for column in self.columns:
                self._copy_weights(self._build_network(), [column])

    def load_network(self, weights: dict[str, Tensor], source: str) -> None:
        """Load the weights of the single network into every column; new parameters are not changed.

        Args, Raises: See :func:`revcol_mm.models.network_weights.load_network`.
        """
        network = self._build_network()
        load_network(network, weights, source)
        self._copy_weights(network, self.columns)

    def _build_network(self) -> nn.Module:
        """Build the single network with initialised weights."""
        if self.net is None:
            raise ValueError(
                'loading the weights of a single network needs its config as net, but net is a module'
            )
        network: AnyModule = MODELS.build(copy.deepcopy(self.net))
        if hasattr(network, 'init_weights'):  # plain modules are initialised by their constructor
            network.init_weights()
        return network

    def _copy_weights(self, network: nn.Module, columns: Sequence[Column]) -> None:
        """Copy a network's weights to columns and, with the first column, to the stem and the outputs."""
        stages = split_stages(network, check=False)  # the constructor has checked it
        if columns[0] is self.columns[0]:
            self.stem.load_state_dict(stages.stem.state_dict())
            for index, output in self.outputs.items():
                own: AnyModule = output
                if self.has_pyramid:
                    own = own[0]
                own.load_state_dict(stages.outputs[int(index)].state_dict())
        for column in columns:
            for level, stage in zip(column.levels, stages.stages):
                if not isinstance(level, LightLevel):
                    getattr(level, 'stage', level).load_state_dict(stage.state_dict())

    def no_weight_decay(self) -> set[str]:
        """See :meth:`ColumnBackbone.no_weight_decay`: alphas, gains, position embeddings and class tokens."""
        undecayed = ('alpha', 'gain', 'pos_embed', 'cls_token', 'relative_position_bias_table')
        return {name for name, _ in self.named_parameters() if name.rpartition('.')[2].startswith(undecayed)}

    @property
    def num_depths(self) -> int:
        return self._num_depths

    def param_depth(self, name: str) -> int | None:
        """Return a parameter's depth in the network.

        New parameters between columns have the smallest depth of their level; those that resize outputs have
        the last.
        """
        try:
            self.get_parameter(name)
        except AttributeError:
            return None
        if name in self._depths:  # of the first column, which is the network, the stem and the outputs
            return self._depths[name]
        if name.startswith('outputs.'):
            return self.num_depths - 1
        level, _, rest = re.sub(r'^subnet\d+\.(alpha|level)', '', name).partition('.')
        prefix = f'subnet0.level{level}.'
        own = self._depths.get(prefix + rest.removeprefix('stage.'))
        in_level = (depth for each, depth in self._depths.items() if each.startswith(prefix))
        return min(in_level, default=0) if own is None else own


def _network_depths(network: AnyModule, stages: Stages) -> tuple[dict[int, int], int]:
    """Return the depth of every parameter of the network, by its id, and the number of depths.

    Depths come from the network's ``get_layer_depth``; without it, 0 is the stem, and 1 + l is level l with
    its output.
    """
    if hasattr(network, 'get_layer_depth'):
        try:
            found = {
                id(param): network.get_layer_depth(BACKBONE + name, BACKBONE)
                for name, param in network.named_parameters()
            }
            (num_depths,) = {number for _, number in found.values()}
            return {key: depth for key, (depth, _) in found.items()}, num_depths
        except NotImplementedError:  # MMPretrain's ResNet of less than 50 layers
            pass
    parts = [[stages.stem], *zip(stages.stages, stages.outputs)]
    depths = {
        id(param): depth
        for depth, modules in enumerate(parts)
        for module in modules
        for param in module.parameters()
    }
    return depths, len(parts) + 1
