"""RevCol, the Reversible Column Network (ICLR 2023, arXiv 2212.11696), as a multi-level backbone.

Letters: B batch, H and W image size, L levels (4 in all published models), N columns, C_l channels of
level l, whose stride is 4 * 2^l.
"""

import re
from collections import deque
from typing import Iterator, Sequence

import torch
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from torch import Tensor, nn

from revcol_mm.ops import Chain, ReversibleChain, uncouple

from ..checkpoint import load_backbone
from ..layers import Column, LayerNorm2d

# RevCol paper, table 1, and the official code. `nano` is ours: for tests and demos.
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
    """Check the parts of an architecture; the signature is that of the `arch` dict."""
    channels, layers = tuple(channels), tuple(layers)
    if not channels or len(channels) != len(layers):
        raise ValueError(f'channels and layers need one number for each level, got {channels} and {layers}')
    for name, numbers in dict(channels=channels, layers=layers, num_columns=[num_columns]).items():
        if not all(isinstance(n, int) and n >= 1 for n in numbers):
            raise ValueError(f'{name} takes whole numbers from 1 on, got {numbers}')
    if level_connection not in ('standard', 'huge'):
        raise ValueError(f"level_connection is 'standard' or 'huge', got {level_connection!r}")
    if level_connection == 'huge' and len(channels) < 3:
        raise ValueError("level_connection='huge' links level 0 to the last of at least 3 levels")
    return channels, layers, num_columns, level_connection


@MODELS.register_module()
class RevCol(BaseModule):
    """N columns of L levels, each tied to the column before by reversible couplings.

    Every column sees the image (the stem's output) again; the last column's levels are the features.
    ``state_dict()`` has the published keys and shapes.

    Args:
        arch: 'nano', 'tiny', 'small', 'base', 'large', 'xlarge' or 'huge', or a dict of ``channels`` and
            ``layers`` (one number each for every level), ``num_columns`` and, if wanted,
            ``level_connection='huge'``: level 0 also reads the last level of the column before.
        kernel_size: Size of the depthwise convolutions, odd. The published models have 3, RevCol-H for
            segmentation 7.
        drop_path_rate: Stochastic-depth rate of a column's last block, in [0, 1); it rises linearly from
            0 and is the same in every column.
        save_memory: Train reversibly: recompute the columns in backward instead of storing them. Outputs have
            the same bits either way. Evaluation mode, in which models are exported, is always plain.
        out_indices: Levels to return, in this order; negative ones count from the last.
        frozen_columns: Freeze the stem and this many columns; 0 freezes nothing.
        layer_scale_init_value: Initial layer scale of the blocks. RevCol official code: 1e-6.
        in_channels: Channels of the images: 1 of grey ones, 4 of RGB and infrared, and so on. Published
            weights, which are for 3, are adapted, see :func:`revcol_mm.models.checkpoint.adapt_stem`.
        init_cfg: ``dict(type='Pretrained', checkpoint=...)`` takes a published checkpoint as it is, see
            :func:`revcol_mm.models.checkpoint.load_backbone`.

    Attributes:
        out_channels: Channels of each returned feature.
        out_strides: Stride of each returned feature.
        reconstruction_errors: Set it to a list, and reversible training appends to it how exact it is, see
            :class:`revcol_mm.ops.ReversibleChain`. ReversibleCheckHook does.

    Raises:
        ValueError: If an argument is none of the above.

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
        super().__init__(init_cfg)
        if isinstance(arch, str):
            if arch not in ARCHS:
                raise ValueError(f'arch {arch!r} is none of {", ".join(ARCHS)}, nor a dict')
            arch = ARCHS[arch]
        try:
            self.channels, self.layers, num_columns, level_connection = _resolve_arch(**arch)
        except TypeError as error:
            raise ValueError(
                'an arch dict holds channels, layers, num_columns and, if wanted, level_connection; '
                f'got {sorted(arch)}'
            ) from error
        num_levels = len(self.channels)
        if not isinstance(kernel_size, int) or kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f'kernel_size takes an odd number from 1 on, got {kernel_size}')
        if not 0 <= drop_path_rate < 1:
            raise ValueError(f'drop_path_rate must be in [0, 1), got {drop_path_rate}')
        if not out_indices or not all(-num_levels <= i < num_levels for i in out_indices):
            raise ValueError(
                f'out_indices takes levels from {-num_levels} to {num_levels - 1}, got {out_indices}'
            )
        if not 0 <= frozen_columns <= num_columns:
            raise ValueError(f'frozen_columns must be 0 to {num_columns}, got {frozen_columns}')
        if not isinstance(in_channels, int) or in_channels < 1:
            raise ValueError(f'in_channels takes a whole number from 1 on, got {in_channels}')
        self.in_channels = in_channels
        self.save_memory = save_memory
        self.reconstruction_errors: list[Tensor] | None = None
        self.num_columns = num_columns
        self.frozen_columns = frozen_columns
        self.out_indices = tuple(i % num_levels for i in out_indices)
        self.out_channels = tuple(self.channels[i] for i in self.out_indices)
        self.out_strides = tuple(4 * 2**i for i in self.out_indices)
        self.min_size = 4 * 2 ** (num_levels - 1)

        self.stem = nn.Sequential(
            nn.Conv2d(in_channels, self.channels[0], kernel_size=4, stride=4),
            LayerNorm2d(self.channels[0], eps=1e-6),
        )
        drop_path_rates = torch.linspace(0, drop_path_rate, sum(self.layers), device='cpu').tolist()
        for index in range(num_columns):
            column = Column(
                self.channels,
                self.layers,
                kernel_size,
                first=index == 0,
                level_connection=level_connection,
                drop_path_rates=drop_path_rates,
                layer_scale_init_value=layer_scale_init_value,
            )
            self.add_module(f'subnet{index}', column)  # the published name
        self.apply(self.init_layer)
        for module in self._frozen_modules():
            module.requires_grad_(False)

    @staticmethod
    def init_layer(module: nn.Module) -> None:
        """RevCol official code, `FullNet._init_weights`."""
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.trunc_normal_(module.weight, std=0.02)
            nn.init.zeros_(module.bias)

    def init_weights(self) -> None:
        """Load ``init_cfg``'s checkpoint, if it has one; the constructor has set the weights otherwise."""
        if isinstance(self.init_cfg, dict) and self.init_cfg['type'] == 'Pretrained':
            load_backbone(self, self.init_cfg['checkpoint'])
            self._is_init = True
        else:
            super().init_weights()

    @property
    def columns(self) -> list[Column]:
        """The columns, first one first."""
        return [getattr(self, f'subnet{index}') for index in range(self.num_columns)]

    def _frozen_modules(self) -> list[nn.Module]:
        return [self.stem, *self.columns[: self.frozen_columns]] if self.frozen_columns else []

    def train(self, mode: bool = True) -> 'RevCol':
        """Set training mode; frozen parts stay in evaluation mode."""
        super().train(mode)
        for module in self._frozen_modules():
            module.eval()
        return self

    def forward_columns(self, x: Tensor) -> Iterator[list[Tensor]]:
        """Yield every level of every column, column 0 first.

        Args:
            x: Images, (B, in_channels, H, W), H and W at least ``min_size`` (32).

        Returns:
            For each column L tensors (B, C_l, H_l, W_l), channels-last in memory. H_0 is H / 4 and each
            further level half the one before, rounded down; W_l likewise.

        Raises:
            ValueError: If ``x`` has another shape.
            RuntimeError, ValueError: In reversible training, those of :class:`revcol_mm.ops.ReversibleChain`.
        """
        if x.ndim != 4 or x.shape[1] != self.in_channels or min(x.shape[2:]) < self.min_size:
            raise ValueError(
                f'RevCol takes images (B, {self.in_channels}, H, W) with H and W of at least '
                f'{self.min_size}, got {tuple(x.shape)}'
            )
        x = self.stem(x)
        features = [x.new_zeros(1) for _ in self.channels]  # what comes before the first column
        columns, chain = self.columns, None
        num_frozen = 0 if x.requires_grad else self.frozen_columns  # through these no gradient flows
        if self.training and torch.is_grad_enabled():
            if self.save_memory:
                chain = ReversibleChain(len(columns) - num_frozen, self.reconstruction_errors)
            elif x.device.type != 'mps':  # which has no float64
                chain = Chain()
        for index, column in enumerate(columns):
            features = column(x, features, chain if index >= num_frozen else None)
            yield features

    def reconstruct_columns(self, stem: Tensor, features: Sequence[Tensor]) -> Iterator[list[Tensor]]:
        """Yield every level of the earlier columns, last but one first, from the last column's alone.

        Args:
            stem: ``self.stem(image)``, (B, C_0, H_0, W_0).
            features: All L levels of the last column.

        Returns:
            For each column L tensors, as :meth:`forward_columns` yields them.

        Raises:
            RuntimeError: In training mode, where stochastic depth would draw other numbers.

        Note:
            Every column multiplies what is lost by about 4 at alpha 0.5. In float64 the relative error is
            below 1e-8 after 8 columns; float32 is good for very few. (Training does not rely on this: it
            keeps the lost bits, see :mod:`revcol_mm.ops.lost_bits`.)
        """
        if self.training:
            raise RuntimeError('reconstruct_columns needs evaluation mode: call eval() first')
        for column in reversed(self.columns[1:]):
            features = uncouple(column.couplings(), stem, features)
            yield features

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Levels ``out_indices`` of the last column; shapes and errors as in :meth:`forward_columns`.

        In memory they are laid out as ``x`` is. MMCV's RoIAlign, for one, takes other layouts for contiguous
        ones, without an error.
        """
        channels_last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
        layout = torch.channels_last if channels_last else torch.contiguous_format
        (features,) = deque(self.forward_columns(x), maxlen=1)  # holds one column at a time
        return tuple(features[i].contiguous(memory_format=layout) for i in self.out_indices)

    def get_layer_depth(self, param_name: str, prefix: str = '') -> tuple[int, int]:
        """Depth of a parameter for layer-wise learning-rate decay (MMPretrain's convention).

        The stem has depth 0 and a block 1 + its number in the column + the column's number, as in RevCol's
        official optimizer constructors. A level's fusion counts with its first block, alphas as block 0.

        Args:
            param_name: Name of a parameter, with ``prefix``.
            prefix: Name of this backbone in the model, such as 'backbone.'.

        Returns:
            The depth, and the number of depths: the backbone's own and a last one for whatever has another
            prefix.

        Raises:
            ValueError: If the prefix is right but this backbone has no such parameter.
        """
        num_depths = sum(self.layers) + self.num_columns + 1
        if not param_name.startswith(prefix):
            return num_depths - 1, num_depths
        name = param_name.removeprefix(prefix)
        if name.startswith('stem.'):
            return 0, num_depths
        match = re.match(r'subnet(\d+)\.(?:alpha\d+$|level(\d+)\.(?:fusion|blocks\.(\d+))\.)', name)
        if not match:
            raise ValueError(f'RevCol has no parameter {name!r}')
        column, level, block = (int(group or 0) for group in match.groups())
        return 1 + column + sum(self.layers[:level]) + block, num_depths

    def no_weight_decay(self) -> set[str]:
        """Names of parameters with more than one dimension that get no weight decay (timm's convention)."""
        return {name for name, _ in self.named_parameters() if re.search(r'\.alpha\d+$', name)}
