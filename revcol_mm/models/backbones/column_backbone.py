"""Backbones made of a stem and columns, of which RevCol is one.

Letters: B batch, H and W image size, L levels, N columns, C_l channels of level l.
"""

from collections import deque
from typing import Any, Iterator, Sequence

import torch
from mmengine.model import BaseModule
from torch import Tensor, nn

from revcol_mm.ops import ReversibleChain, uncouple

from ..layers import Column, bound_alphas_


class _Layout(torch.autograd.Function):
    """Lay a feature out for the heads, and its gradient as the columns' features are, channels-last.

    Otherwise every block of the last column, and of all columns behind it, would turn its gradient round.
    """

    @staticmethod
    def forward(feature: Tensor, layout: torch.memory_format) -> Tensor:
        return feature.contiguous(memory_format=layout)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad.contiguous(memory_format=torch.channels_last), None


class ColumnBackbone(BaseModule):
    """A stem, and N columns of L levels, each tied to the column before by reversible couplings.

    Every column sees the image (the stem's output) again; the last column's levels are the features. Hooks,
    supervision, sharding and analysis work on any subclass.

    Args:
        stem: Takes images, (B, in_channels, H, W).
        columns: The columns, first one first. Their names are ``subnet0``, ``subnet1`` and so on.
        channels: Channels C_l of each level.
        strides: Stride of each level.
        out_indices: Levels to return, in this order; negative ones count from the last.
        frozen_columns: Freeze the stem and this many columns; 0 freezes nothing.
        save_memory: Train reversibly: recompute the columns in backward instead of storing them. Evaluation
            mode, in which models are exported, is always plain.
        in_channels: Channels of the images.
        init_cfg: MMEngine's.

    Attributes:
        out_channels: Channels of each returned feature.
        out_strides: Stride of each returned feature.
        min_size: Least height and width of images: the last level's stride.

    Raises:
        ValueError: If an argument is none of the above.
    """

    chain_type = ReversibleChain  # what trains with save_memory

    def __init__(
        self,
        stem: nn.Module,
        columns: Sequence[Column],
        channels: Sequence[int],
        strides: Sequence[int],
        out_indices: Sequence[int],
        frozen_columns: int = 0,
        save_memory: bool = False,
        in_channels: int = 3,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        self.channels, self.num_columns = tuple(channels), len(columns)
        num_levels = len(self.channels)
        if not out_indices or not all(-num_levels <= i < num_levels for i in out_indices):
            raise ValueError(
                f'out_indices takes levels from {-num_levels} to {num_levels - 1}, got {out_indices}'
            )
        if not 0 <= frozen_columns <= self.num_columns:
            raise ValueError(f'frozen_columns must be 0 to {self.num_columns}, got {frozen_columns}')
        self.in_channels, self.save_memory, self.frozen_columns = in_channels, save_memory, frozen_columns
        self.out_indices = tuple(i % num_levels for i in out_indices)
        self.out_channels = tuple(self.channels[i] for i in self.out_indices)
        self.out_strides = tuple(strides[i] for i in self.out_indices)
        self.min_size = max(strides)
        self.stem = stem
        for index, column in enumerate(columns):
            self.add_module(f'subnet{index}', column)  # RevCol's published name
        for module in self._frozen_modules():
            module.requires_grad_(False)

    @property
    def columns(self) -> list[Column]:
        """The columns, first one first."""
        return [getattr(self, f'subnet{index}') for index in range(self.num_columns)]

    def _frozen_modules(self) -> list[nn.Module]:
        return [self.stem, *self.columns[: self.frozen_columns]] if self.frozen_columns else []

    def train(self, mode: bool = True) -> 'ColumnBackbone':
        """Set training mode; frozen parts stay in evaluation mode."""
        super().train(mode)
        for module in self._frozen_modules():
            module.eval()
        return self

    def forward_columns(self, x: Tensor) -> Iterator[list[Tensor]]:
        """Yield every level of every column, column 0 first.

        Args:
            x: Images, (B, in_channels, H, W), H and W at least ``min_size``.

        Returns:
            For each column L tensors (B, C_l, H_l, W_l); in reversible training channels-last in memory.

        Raises:
            ValueError: If ``x`` has another shape.
            RuntimeError, ValueError: In reversible training, those of :class:`revcol_mm.ops.ReversibleChain`.
        """
        if x.ndim != 4 or x.shape[1] != self.in_channels or min(x.shape[2:]) < self.min_size:
            raise ValueError(
                f'{type(self).__name__} takes images (B, {self.in_channels}, H, W) with H and W of at least '
                f'{self.min_size}, got {tuple(x.shape)}'
            )
        x = self.stem(x)
        features = [x.new_zeros(1) for _ in self.channels]  # what comes before the first column
        columns, chain = self.columns, None
        if self.training:
            bound_alphas_(columns)
        num_frozen = 0 if x.requires_grad else self.frozen_columns  # through these no gradient flows
        if self.save_memory and self.training and torch.is_grad_enabled():
            chain = self.chain_type([column.couplings() for column in columns[num_frozen:]])
        for index, column in enumerate(columns):
            features = column(x, features, chain) if chain and index >= num_frozen else column(x, features)
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
            keeps the lost bits, see :class:`revcol_mm.ops.ReversibleChain`.)
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
        lay_out = _Layout.apply if self.training else _Layout.forward  # which can be traced
        return tuple(lay_out(self.finish(i, features[i]), layout) for i in self.out_indices)

    def finish(self, level: int, feature: Tensor) -> Tensor:
        """What a feature of the last column, (B, C_l, H_l, W_l), becomes before it is returned: itself."""
        return feature

    @property
    def num_depths(self) -> int:
        """Depths of parameters, of which the last is that of whatever is not of this backbone."""
        return self.num_columns + 2

    def param_depth(self, name: str) -> int | None:
        """Depth of a parameter: 0 in the stem, 1 + its number in a column. None: there is no such.

        Subclasses may tell more.
        """
        try:
            self.get_parameter(name)
        except AttributeError:
            return None
        return 0 if name.startswith('stem.') else 1 + int(name.split('.')[0].removeprefix('subnet'))

    def get_layer_depth(self, param_name: str, prefix: str = '') -> tuple[int, int]:
        """Depth of a parameter for layer-wise learning-rate decay (MMPretrain's convention).

        Args:
            param_name: Name of a parameter, with ``prefix``.
            prefix: Name of this backbone in the model, such as 'backbone.'.

        Returns:
            The depth, see :meth:`param_depth`, and the number of depths: the backbone's own and a last one
            for whatever has another prefix.

        Raises:
            ValueError: If the prefix is right but this backbone has no such parameter.
        """
        if not param_name.startswith(prefix):
            return self.num_depths - 1, self.num_depths
        depth = self.param_depth(param_name.removeprefix(prefix))
        if depth is None:
            raise ValueError(f'{type(self).__name__} has no parameter {param_name.removeprefix(prefix)!r}')
        return depth, self.num_depths

    def no_weight_decay(self) -> set[str]:
        """Names of parameters with more than one dimension that get no weight decay (timm's convention)."""
        return {name for name, _ in self.named_parameters() if name.rpartition('.')[2].startswith('alpha')}
