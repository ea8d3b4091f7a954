"""The base class of backbones made of a stem and columns, such as RevCol.

Letters: B batch, H and W image size, L levels, N columns, C_l channels of level l.
"""

from collections import deque
from typing import Any, Iterator, Sequence

import torch
from mmengine.model import BaseModule
from torch import Tensor, nn

from revcol_mm.ops import ReversibleChain, uncouple

from ..layers import Column, bound_alphas_
from ..layers.column import as_links


class _SetLayout(torch.autograd.Function):
    """Convert a feature to the memory format of the heads, and its gradient to channels-last.

    The columns compute in channels-last. With another format of the gradient, every block of every column
    would have to convert it.
    """

    @staticmethod
    def forward(feature: Tensor, memory_format: torch.memory_format) -> Tensor:
        return feature.contiguous(memory_format=memory_format)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad.contiguous(memory_format=torch.channels_last), None


class ColumnBackbone(BaseModule):
    """A stem and N columns of L levels, each connected to the previous column by reversible couplings.

    Every column reads the stem's output; the levels of the last column are the features. Hooks, supervision,
    sharding and analyses work with any subclass.

    Args:
        stem: Takes images, (B, in_channels, H, W).
        columns: The columns in order. They are named ``subnet0``, ``subnet1`` and so on.
        channels: Channels C_l of each level.
        strides: Stride of each level.
        out_indices: Levels to return, in this order; negative indices count from the last level.
        frozen_columns: Freeze the stem and this many columns; 0 freezes nothing.
        save_memory: Train reversibly: recompute the columns in backward instead of storing them. Evaluation
            and export do not depend on it.
        in_channels: Channels of the images.
        init_cfg: See MMEngine's BaseModule.

    Attributes:
        strides: Stride of each level.
        out_channels: Channels of each returned feature.
        out_strides: Stride of each returned feature.
        min_size: Minimum height and width of images: the largest stride.

    Raises:
        ValueError: If an argument is invalid.
    """

    chain_type = ReversibleChain  # runs the columns in training with save_memory

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
        self.strides, self.min_size = tuple(strides), max(strides)
        self.out_strides = tuple(strides[i] for i in self.out_indices)
        self.stem = stem
        for index, column in enumerate(columns):
            self.add_module(f'subnet{index}', column)  # published name
        for module in self._frozen_modules():
            module.requires_grad_(False)

    @property
    def columns(self) -> list[Column]:
        """The columns in order."""
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
        """Yield all levels of every column, column 0 first.

        Args:
            x: Images, (B, in_channels, H, W), with H and W of at least ``min_size``.

        Yields:
            L tensors (B, C_l, H_l, W_l) per column; in reversible training, in channels-last memory format.

        Raises:
            ValueError: If ``x`` has another shape.
            RuntimeError, ValueError: In reversible training, see :class:`revcol_mm.ops.ReversibleChain`.
        """
        if x.ndim != 4 or x.shape[1] != self.in_channels or min(x.shape[2:]) < self.min_size:
            raise ValueError(
                f'{type(self).__name__} takes images (B, {self.in_channels}, H, W) with H and W of at least '
                f'{self.min_size}, got {tuple(x.shape)}'
            )
        x = self.stem(x)
        features = [x.new_zeros(1) for _ in self.channels]  # the first column has no previous column
        columns, chain = self.columns, None
        if self.training:
            bound_alphas_(columns)
        # No gradient flows through frozen columns, unless the image needs one: they stay out of the chain.
        num_frozen = 0 if x.requires_grad else self.frozen_columns
        if self.save_memory and self.training and torch.is_grad_enabled():
            chain = self.chain_type(as_links(columns[num_frozen:]))
        for index, column in enumerate(columns):
            features = column(x, features, chain) if chain and index >= num_frozen else column(x, features)
            yield features

    def reconstruct_columns(self, stem: Tensor, features: Sequence[Tensor]) -> Iterator[list[Tensor]]:
        """Reconstruct the earlier columns from the last one, in reverse order.

        Args:
            stem: ``self.stem(image)``, (B, C_0, H_0, W_0).
            features: All L levels of the last column.

        Yields:
            L tensors per column, as in :meth:`forward_columns`.

        Raises:
            RuntimeError: In training mode, where stochastic depth would draw different random numbers.

        Note:
            Every column multiplies the rounding error by about 4 at alpha 0.5. In float64 the relative error
            is below 1e-8 after 8 columns; in float32 only very few columns can be reconstructed. Training is
            exact because it stores the lost bits, see :class:`revcol_mm.ops.ReversibleChain`.
        """
        if self.training:
            raise RuntimeError('reconstruct_columns needs evaluation mode: call eval() first')
        for column in reversed(self.columns[1:]):
            features = uncouple(column.couplings(), stem, features)
            yield features

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return :meth:`output` of the last column's levels ``out_indices``; see :meth:`forward_columns`."""
        (features,) = deque(self.forward_columns(x), maxlen=1)  # keeps one column at a time
        return tuple(self.output(i, features[i], x) for i in self.out_indices)

    def output(self, level: int, feature: Tensor, images: Tensor) -> Tensor:
        """Return what heads get for a level of any column: :meth:`finish` in the images' memory format.

        MMCV's RoIAlign, for example, silently treats channels-last features as contiguous.
        """
        channels_last = images.is_contiguous(memory_format=torch.channels_last) and not images.is_contiguous()
        memory_format = torch.channels_last if channels_last else torch.contiguous_format
        # Plain functions can be traced and exported, autograd functions cannot.
        set_layout = _SetLayout.apply if self.training else _SetLayout.forward
        return set_layout(self.finish(level, feature), memory_format)

    def finish(self, level: int, feature: Tensor) -> Tensor:
        """Return the output for one of the levels ``out_indices``: here the level itself."""
        return feature

    @property
    def num_depths(self) -> int:
        """Number of learning-rate groups of layer-wise decay.

        A parameter's depth is its group: 0 is the stem, the last is everything outside of the backbone.
        """
        return self.num_columns + 2

    def param_depth(self, name: str) -> int | None:
        """Return the depth of a parameter: 0 in the stem, 1 + i in column i; subclasses may have more depths.

        None: there is no such parameter.
        """
        try:
            self.get_parameter(name)
        except AttributeError:
            return None
        return 0 if name.startswith('stem.') else 1 + int(name.split('.')[0].removeprefix('subnet'))

    def get_layer_depth(self, param_name: str, prefix: str = '') -> tuple[int, int]:
        """Return a parameter's depth for layer-wise learning-rate decay (MMPretrain's convention).

        Args:
            param_name: Name of the parameter, including ``prefix``.
            prefix: Name of this backbone in the model, such as 'backbone.'.

        Returns:
            The depth, see :meth:`param_depth`, and the number of depths. Parameters with another prefix have
            the last depth.

        Raises:
            ValueError: If the backbone has no such parameter.
        """
        if not param_name.startswith(prefix):
            return self.num_depths - 1, self.num_depths
        depth = self.param_depth(param_name.removeprefix(prefix))
        if depth is None:
            raise ValueError(f'{type(self).__name__} has no parameter {param_name.removeprefix(prefix)!r}')
        return depth, self.num_depths

    def no_weight_decay(self) -> set[str]:
        """Return the multi-dimensional parameters without weight decay (timm's convention): alphas."""
        return {name for name, _ in self.named_parameters() if name.rpartition('.')[2].startswith('alpha')}
