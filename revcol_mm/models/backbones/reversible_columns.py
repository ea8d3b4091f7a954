"""Any network with stages as a column: copies of it, each tied to the one before by reversible couplings.

The paper claims that the unit "can be composed with any single-column network" (RevCol, section 3.1). Copies
of one pretrained network in a row, of which each stage reads the copy before, are CBNet's (arXiv 2107.00420).

Letters: B batch, C_l channels of level l, H_l and W_l its size.
"""

import copy
import re
from typing import Iterator, Sequence

import torch
import torch.nn.functional as F
from mmengine.registry import MODELS
from torch import Tensor, nn

from revcol_mm.checkpoints.fitting import load_backbone
from revcol_mm.checkpoints.layouts import model_weights
from revcol_mm.checkpoints.reading import read_checkpoint

from ..image_channels import image_channels
from ..layers import Column, ConvNeXtBlock, LayerNorm2d, PointwiseLinear
from ..network_weights import is_of_columns, load_network
from ..stages import Stages, probe, split_stages
from .column_backbone import ColumnBackbone

MODES = ('copies', 'light')


class FromAbove(nn.Module):
    """LayerNorm, linear, then nearest upsampling; zero at first.

    Args:
        in_channels: Channels of the higher level.
        out_channels: Channels of what it is added to.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm = LayerNorm2d(in_channels, eps=1e-6)
        self.linear = PointwiseLinear(in_channels, out_channels)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: Tensor, size: Sequence[int]) -> Tensor:
        """(B, in_channels, h, w) -> (B, out_channels, H, W), where ``size`` is (H, W)."""
        x = self.linear(self.norm(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return F.interpolate(x, size=size, mode='nearest')


class StageLevel(nn.Module):
    """``(1 - alpha) * stage(below + from_above(above))``: F of a column behind the first.

    The column adds ``alpha * c_before``. Where the column before has the stage's own feature, and nothing
    comes from above, the sum is that feature, for any alpha.

    Args:
        stage: Of the network.
        in_channels: Channels of what it takes.
        channels: Channels C_l of what it gives.
        above_channels: Channels of the level above, in the column before. None: there is none.
    """

    owns_alpha = True  # its F needs it

    def __init__(self, stage: nn.Module, in_channels: int, channels: int, above_channels: int | None) -> None:
        super().__init__()
        self.stage = stage
        self.from_above = None if above_channels is None else FromAbove(above_channels, in_channels)
        self.alpha = nn.Parameter(torch.full((1, channels, 1, 1), 0.5))

    def forward(self, below: Tensor, *above: Tensor) -> Tensor:
        """(B, in_channels, H, W) and any (B, C_above, h, w) -> (B, C_l, H_l, W_l)."""
        if self.from_above is not None:
            below = below + self.from_above(*above, below.shape[-2:])
        return (1 - self.alpha) * self.stage(below)


class LightLevel(nn.Module):
    """Blocks that begin at zero, on the level below and the one above: F of a light column.

    Args:
        in_channels: Channels of the level below.
        channels: Channels C_l of what it gives.
        stride: Of this level to the one below.
        above_channels: Channels of the level above, in the column before. None: there is none.
        num_blocks: ConvNeXt blocks.
    """

    owns_alpha = True  # which is 1 at first

    def __init__(
        self, in_channels: int, channels: int, stride: int, above_channels: int | None, num_blocks: int
    ) -> None:
        super().__init__()
        self.down = nn.Sequential(
            LayerNorm2d(in_channels, eps=1e-6), nn.Conv2d(in_channels, channels, stride, stride)
        )
        self.from_above = None if above_channels is None else FromAbove(above_channels, channels)
        self.blocks = nn.Sequential(
            *(ConvNeXtBlock(channels, kernel_size=7, layer_scale_init_value=1.0) for _ in range(num_blocks))
        )
        self.alpha = nn.Parameter(torch.ones(1, channels, 1, 1))
        self.gain = nn.Parameter(torch.zeros(1, channels, 1, 1))

    def forward(self, below: Tensor, *above: Tensor) -> Tensor:
        """(B, in_channels, H, W) and any (B, C_above, h, w) -> (B, C_l, H_l, W_l)."""
        x = self.down(below)
        if self.from_above is not None:
            x = x + self.from_above(*above, x.shape[-2:])
        return self.gain * self.blocks(x)


def simple_pyramid(
    outputs: Sequence[nn.Module], channels: int, stride: int
) -> tuple[list[nn.Module], list[int]]:
    """Scale four features of one stride to four strides (ViTDet, arXiv 2203.16527, section 3).

    Args:
        outputs: What is done to each feature first.
        channels: Of each feature.
        stride: s.

    Returns:
        Modules that scale as well, and the strides s / 4, s / 2, s and 2 s.

    Raises:
        ValueError: If there are not four.
    """
    if len(outputs) != 4:
        raise ValueError(f'features of one stride are scaled to four, but the network has {len(outputs)}')
    up = [nn.ConvTranspose2d(channels, channels, 2, 2) for _ in range(3)]
    scalings = (
        nn.Sequential(up[0], LayerNorm2d(channels, eps=1e-6), nn.GELU(), up[1]),
        up[2],
        nn.Identity(),
        nn.MaxPool2d(2),
    )
    modules = [nn.Sequential(output, scaling) for output, scaling in zip(outputs, scalings)]
    return modules, [stride // 4, stride // 2, stride, 2 * stride]


@MODELS.register_module()
class ReversibleColumns(ColumnBackbone):
    """N columns of L levels made of one network that has L stages.

    At first it computes what the network computes, but for rounding, for every number of columns: the first
    column is the network, later ones are its copies, mixed with the column before, and what they read from
    levels above begins at zero.

    Args:
        net: Config of a network that :func:`revcol_mm.models.split_stages` can split, such as
            ``dict(type='mmpretrain.SwinTransformer', arch='tiny', out_indices=(0, 1, 2, 3))``; or a network.
        num_columns: N.
        mode: 'copies'; or 'light': columns behind the first are ``light_blocks`` blocks a level.
        light_blocks: Of light columns.
        save_memory, out_indices, frozen_columns: As in :class:`ColumnBackbone`; by default all levels.
        init_cfg: ``dict(type='Pretrained', checkpoint=...)`` takes the checkpoint of the single network, as
            it is published, or one of this.

    Raises:
        ValueError: If an argument is none of the above, or the network cannot be split.
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
            raise ValueError(f'mode {mode!r} is none of {", ".join(MODES)}')
        for name, number in dict(num_columns=num_columns, light_blocks=light_blocks).items():
            if not isinstance(number, int) or number < 1:
                raise ValueError(f'{name} takes a whole number from 1 on, got {number}')
        is_config = isinstance(net, dict)
        if init_cfg and not is_config:
            raise ValueError('init_cfg is for a net that is a config; a module keeps the weights that it has')
        network = MODELS.build(copy.deepcopy(net)) if is_config else net
        if save_memory and any(getattr(module, 'with_cp', False) for module in network.modules()):
            raise ValueError('net has with_cp=True, which stores what save_memory=True need not: choose one')
        network.train()  # but for what it keeps in evaluation mode, by norm_eval or frozen_stages
        stages = split_stages(network)
        shapes = probe(stages)
        last = len(shapes.channels) - 1
        lateral = [(level - 1 if level else None,) for level in range(last + 1)]
        fused = [(*below, level + 1) if level < last else below for level, below in enumerate(lateral)]

        def build_level(level: int) -> nn.Module:
            sizes = shapes.in_channels[level], shapes.channels[level]
            above = shapes.channels[level + 1] if level < last else None
            if mode == 'copies':
                return StageLevel(copy.deepcopy(stages.stages[level]), *sizes, above)
            return LightLevel(*sizes, shapes.steps[level], above, light_blocks)

        columns = [Column(stages.stages, lateral, shapes.channels)]
        columns += [
            Column([build_level(level) for level in range(last + 1)], fused, shapes.channels)
            for _ in range(num_columns - 1)
        ]
        outputs, strides = stages.outputs, shapes.out_strides
        has_pyramid = last > 0 and len(set(strides)) == 1
        if has_pyramid:
            outputs, strides = simple_pyramid(outputs, shapes.channels[0], strides[0])
        super().__init__(
            stages.stem,
            columns,
            shapes.channels,
            strides,
            tuple(range(last + 1) if out_indices is None else out_indices),
            frozen_columns,
            save_memory,
            image_channels(network),
            init_cfg,
        )
        self.net, self.mode, self.has_pyramid = net if is_config else None, mode, has_pyramid
        self.out_channels = tuple(shapes.out_channels[level] for level in self.out_indices)
        self.outputs = nn.ModuleDict({str(level): outputs[level] for level in {*self.out_indices}})
        self._depths, self._num_depths = _depths(network, stages)
        self._evaluated = [module for module in self.modules() if not module.training]

    def train(self, mode: bool = True) -> 'ReversibleColumns':
        """Set training mode; what the network keeps in evaluation mode, such as batch norms, stays so."""
        super().train(mode)
        for module in self._evaluated:
            module.training = False
        return self

    def finish(self, level: int, feature: Tensor) -> Tensor:
        """The network's norm of the features that it returns."""
        return self.outputs[str(level)](feature)

    def forward_columns(self, x: Tensor) -> Iterator[list[Tensor]]:
        """See :meth:`ColumnBackbone.forward_columns`; of light columns sizes are multiples of the stride."""
        if self.mode == 'light' and any(side % self.min_size for side in x.shape[-2:]):
            raise ValueError(
                f'light columns take images whose height and width are multiples of {self.min_size}, got '
                f'{tuple(x.shape[-2:])}'
            )
        return super().forward_columns(x)

    def init_weights(self) -> None:
        """Load ``init_cfg``'s checkpoint into every column, or begin every column with weights of its own.

        A network that was given as a module keeps the weights that it has.

        Raises:
            FileNotFoundError, CheckpointError: See :func:`revcol_mm.checkpoints.reading.read_checkpoint`.
            CheckpointError: If a weight of the network is missing or has another shape, or the checkpoint has
                weights that the network lacks.
        """
        self._is_init = True
        if self.net is None:
            return
        if isinstance(self.init_cfg, dict) and self.init_cfg['type'] == 'Pretrained':
            source = self.init_cfg['checkpoint']
            weights = model_weights(read_checkpoint(source))
            if is_of_columns(weights):
                load_backbone(self, source)
            else:
                self.load_network(weights, source)
        else:
            for column in self.columns:
                self._fill([column], self._network())

    def load_network(self, weights: dict[str, Tensor], source: str) -> None:
        """Give every column the weights of the single network; what is new stays as it is.

        Args:
            weights: By names in the network, in a model that has it as backbone, in timm's whole one, or in
                the authors' ConvNeXt, V1, V2 or DINOv3's. Those of anything else are left out.
            source: Where they are from, for messages.

        Raises:
            CheckpointError: If a weight is missing, is too many or has another shape.
        """
        network = self._network()
        load_network(network, weights, source)
        self._fill(self.columns, network)

    def _network(self) -> nn.Module:
        """Another of the single network, with the weights that it begins with."""
        if self.net is None:
            raise ValueError('net is a module, and only the config of one tells how to build another')
        network = MODELS.build(copy.deepcopy(self.net))
        network.init_weights()
        return network

    def _fill(self, columns: Sequence[Column], network: nn.Module) -> None:
        """Give columns the weights of a network, and with the first one the stem and the outputs."""
        stages = split_stages(network)
        if columns[0] is self.columns[0]:
            self.stem.load_state_dict(stages.stem.state_dict())
            for level, output in self.outputs.items():
                own = output[0] if self.has_pyramid else output
                own.load_state_dict(stages.outputs[int(level)].state_dict())
        for column in columns:
            for index, stage in enumerate(stages.stages):
                level = getattr(column, f'level{index}')
                if not isinstance(level, LightLevel):
                    getattr(level, 'stage', level).load_state_dict(stage.state_dict())

    def no_weight_decay(self) -> set[str]:
        """See :meth:`ColumnBackbone.no_weight_decay`: alphas, gains, and positions and class tokens."""
        undecayed = ('alpha', 'gain', 'pos_embed', 'cls_token', 'relative_position_bias_table')
        return {name for name, _ in self.named_parameters() if name.rpartition('.')[2].startswith(undecayed)}

    @property
    def num_depths(self) -> int:
        return self._num_depths

    def param_depth(self, name: str) -> int | None:
        """The network's own depth of a parameter, in every column; of others that of their level's first."""
        try:
            self.get_parameter(name)
        except AttributeError:
            return None
        if name.startswith('stem.'):
            return self._depths['stem'][name.removeprefix('stem.')]
        if name.startswith('outputs.'):
            return self._num_depths - 2
        level, _, rest = re.sub(r'^subnet\d+\.(alpha|level)', '', name).partition('.')
        depths = self._depths[int(level)]
        return depths.get(rest.removeprefix('stage.'), min(depths.values(), default=0))


def _depths(network: nn.Module, stages: Stages) -> tuple[dict[int | str, dict[str, int]], int]:
    """Depths of each part's parameters, the network's own or else those of levels, and their number."""
    names = {id(param): name for name, param in network.named_parameters()}

    def depth(param: nn.Parameter, part: int | str) -> int:
        try:
            return network.get_layer_depth(names[id(param)])[0]
        except (AttributeError, NotImplementedError):  # MMPretrain's ResNet-18 has it, but for no use
            return 0 if part == 'stem' else part + 1

    depths = {
        part: {name: depth(param, part) for name, param in module.named_parameters()}
        for part, module in (('stem', stages.stem), *enumerate(stages.stages))
    }
    return depths, max(depth for each in depths.values() for depth in each.values()) + 2
