"""RevCol, the Reversible Column Network (ICLR 2023, arXiv 2212.11696), as a multi-level backbone.

Letters: B batch, H and W image size, L levels (4 in all published models), N columns, C_l channels of
level l, whose stride is 4 * 2^l.
"""

import re
from functools import partial
from typing import Sequence

import torch
from mmengine.registry import MODELS
from torch import nn

from revcol_mm.checkpoints.fitting import load_backbone

from ..layers import Column, ConvNeXtBlock, LayerNorm2d, Level, LevelFusion, init_layer
from .column_backbone import ColumnBackbone

# RevCol paper, table 1, and the official code. `nano` is not published: it is for tests and demos.
ARCHS = {
    'nano': dict(channels=(32, 64, 128, 256), layers=(1, 1, 2, 1), num_columns=4),
    'tiny': dict(channels=(64, 128, 256, 512), layers=(2, 2, 4, 2), num_columns=4),
    'small': dict(channels=(64, 128, 256, 512), layers=(2, 2, 4, 2), num_columns=8),
    'base': dict(channels=(72, 144, 288, 576), layers=(1, 1, 3, 2), num_columns=16),
    'large': dict(channels=(128, 256, 512, 1024), layers=(1, 2, 6, 2), num_columns=8),
    'xlarge': dict(channels=(224, 448, 896, 1792), layers=(1, 2, 6, 2), num_columns=8),
    'huge': dict(
        channels=(360, 720, 1440, 2880),
        layers=(1, 2, 6, 2),
        num_columns=8,
        level_connection='huge',
    ),
}


def _resolve_arch(
    channels: Sequence[int],
    layers: Sequence[int],
    num_columns: int,
    level_connection: str = 'standard',
) -> tuple[tuple[int, ...], tuple[int, ...], int, str]:
    """Check the items of an ``arch`` dict, which are the parameters of this function."""
    channels, layers = tuple(channels), tuple(layers)
    if not channels or len(channels) != len(layers):
        raise ValueError(f'channels and layers need one number for each level, got {channels} and {layers}')
    for name, numbers in dict(channels=channels, layers=layers, num_columns=[num_columns]).items():
        if not all(isinstance(n, int) and n >= 1 for n in numbers):
            raise ValueError(f'{name} takes positive integers, got {numbers}')
    if level_connection not in ('standard', 'huge'):
        raise ValueError(f"level_connection must be 'standard' or 'huge', got {level_connection!r}")
    if level_connection == 'huge' and len(channels) < 3:
        raise ValueError("level_connection='huge' connects level 0 to the last of at least 3 levels")
    return channels, layers, num_columns, level_connection


def _build_column(
    channels: Sequence[int],
    layers: Sequence[int],
    level_connection: str,
    kernel_size: int,
    drop_path_rates: Sequence[float],
    layer_scale_init_value: float,
    first: bool,
) -> Column:
    """Build a column. Each level reads the level below and, from the previous column, the level above."""
    last_level = len(channels) - 1
    levels, reads = [], []
    for level, width in enumerate(channels):
        below = level - 1 if level > 0 else None
        above = [level + 1] if level < last_level and not first else []
        if level == 0 and above and level_connection == 'huge':
            above.append(last_level)
        reads.append((below, *above))
        fusion = LevelFusion(None if below is None else channels[below], width, [channels[i] for i in above])
        rates = drop_path_rates[sum(layers[:level]) : sum(layers[: level + 1])]
        blocks = [ConvNeXtBlock(width, kernel_size, 4, rate, layer_scale_init_value) for rate in rates]
        levels.append(Level(fusion, blocks))
    return Column(levels, reads, channels)


@MODELS.register_module()
class RevCol(ColumnBackbone):
    """The Reversible Column Network: a stem and N columns of L levels.

    The state dict has the published keys and shapes.

    Args:
        arch: 'nano', 'tiny', 'small', 'base', 'large', 'xlarge' or 'huge', or a dict with ``channels`` and
            ``layers`` (one number per level), ``num_columns`` and, optionally, ``level_connection='huge'``:
            level 0 also reads the last level of the previous column.
        kernel_size: Size of the depthwise convolutions, odd. Published models use 3, RevCol-H for
            segmentation 7.
        drop_path_rate: Stochastic-depth rate of a column's last block, in [0, 1); it rises linearly from
            0 and is the same in every column.
        save_memory, out_indices, frozen_columns: See :class:`ColumnBackbone`.
        layer_scale_init_value: Initial layer scale of the blocks. RevCol official code: 1e-6.
        in_channels: Channels of the images. Published weights, for 3 channels, are adapted to other numbers,
            see :func:`revcol_mm.checkpoints.fitting.adapt_stem`.
        init_cfg: ``dict(type='Pretrained', checkpoint=...)`` loads a published checkpoint, see
            :func:`revcol_mm.checkpoints.fitting.load_backbone`.

    Raises:
        ValueError: If an argument is invalid.

    Examples:
        >>> import torch
        >>> from revcol_mm import RevCol
        >>> backbone = RevCol(arch='nano')
        >>> [tuple(feature.shape) for feature in backbone(torch.rand(1, 3, 64, 96))]
        [(1, 32, 16, 24), (1, 64, 8, 12), (1, 128, 4, 6), (1, 256, 2, 3)]
    """

    def __init__(
        self,
        arch: str | dict = 'tiny',
        kernel_size: int = 3,
        drop_path_rate: float = 0.0,
        save_memory: bool = False,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        frozen_columns: int = 0,
        layer_scale_init_value: float = 1e-6,
        in_channels: int = 3,
        init_cfg: dict | None = None,
    ) -> None:
        if isinstance(arch, str):
            if arch not in ARCHS:
                raise ValueError(f'arch must be one of {", ".join(ARCHS)}, or a dict, got {arch!r}')
            arch = ARCHS[arch]
        try:
            channels, layers, num_columns, level_connection = _resolve_arch(**arch)
        except TypeError as error:
            raise ValueError(
                'an arch dict has the keys channels, layers, num_columns and, optionally, level_connection; '
                f'got {sorted(arch)}'
            ) from error
        if not isinstance(kernel_size, int) or kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f'kernel_size must be a positive odd integer, got {kernel_size}')
        if not 0 <= drop_path_rate < 1:
            raise ValueError(f'drop_path_rate must be in [0, 1), got {drop_path_rate}')
        if not isinstance(in_channels, int) or in_channels < 1:
            raise ValueError(f'in_channels must be a positive integer, got {in_channels}')
        stem = nn.Sequential(
            nn.Conv2d(in_channels, channels[0], kernel_size=4, stride=4), LayerNorm2d(channels[0], eps=1e-6)
        )
        drop_path_rates = torch.linspace(0, drop_path_rate, sum(layers), device='cpu').tolist()
        build = partial(_build_column, channels, layers, level_connection, kernel_size, drop_path_rates)
        super().__init__(
            stem,
            [build(layer_scale_init_value, first=index == 0) for index in range(num_columns)],
            channels,
            [4 * 2**level for level in range(len(channels))],
            out_indices,
            frozen_columns,
            save_memory,
            in_channels,
            init_cfg,
        )
        self.layers = layers
        self.apply(init_layer)

    def init_weights(self) -> None:
        """Load the checkpoint of ``init_cfg``; without one, the weights from the constructor are kept."""
        if isinstance(self.init_cfg, dict) and self.init_cfg['type'] == 'Pretrained':
            load_backbone(self, self.init_cfg['checkpoint'])
            self._is_init = True
        else:
            super().init_weights()

    @property
    def num_depths(self) -> int:
        return sum(self.layers) + self.num_columns + 1

    def param_depth(self, name: str) -> int | None:
        """Return a parameter's depth: 0 in the stem, else 1 + index of the column + index of the block in it.

        These are the depths of RevCol's official optimizer constructors. A level's fusion has the depth of
        the level's first block, alphas that of block 0. None: there is no such parameter.
        """
        if name.startswith('stem.'):
            return 0
        match = re.match(r'subnet(\d+)\.(?:alpha\d+$|level(\d+)\.(?:fusion|blocks\.(\d+))\.)', name)
        if not match:
            return None
        column, level, block = (int(group or 0) for group in match.groups())
        return 1 + column + sum(self.layers[:level]) + block
