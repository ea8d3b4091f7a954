"""A sequence of equal blocks that trains without storing the activations between them.

Letters: beta is the weight of the input two blocks back.
"""

from typing import Any, Iterable, Iterator

import torch
from torch import Tensor, nn

from revcol_mm.ops import Coupling, ReversibleChain, couple

MIN_BETA = 0.004  # below it, the bits lost by multiplying with beta no longer fit in one byte per element


class _Scaled(nn.Module):
    """``(1 - beta) * block(x, ...)``."""

    def __init__(self, block: nn.Module, beta: float, arguments: tuple[Any, ...]) -> None:
        super().__init__()
        self.block, self.beta, self.arguments = block, beta, arguments

    def forward(self, x: Tensor) -> Tensor:
        output = self.block(x, *self.arguments)
        if output.shape != x.shape:
            raise ValueError(
                f'reversible blocks must keep the shape of their input, but {type(self.block).__name__} maps '
                f'{tuple(x.shape)} to {tuple(output.shape)}'
            )
        return (1 - self.beta) * output


class ReversibleBlocks(nn.Sequential):
    """``x_i = (1 - beta) * B_i(x_{i-1}) + beta * x_{i-2}``, where x_{-1} = x_0 is the input.

    This is a reversible chain of two levels of equal shape that update each other alternately. It
    approximates the plain sequence ``x_i = B_i(x_{i-1})``, with an error of beta times the change over two
    blocks; Dr2Net (CVPR 2024) trains pretrained networks this way. Parameter names are those of an
    nn.Sequential.

    Args:
        blocks: Modules that keep the shape of their input, such as the layers of a ViT or one stage.
        beta: From 0.004 to below 1. Training stores the bits that a block's rounding loses, 2 to 8 per
            element, so the reconstruction is exact for any beta.
        save_memory: Train reversibly.

    Raises:
        ValueError: If beta is outside this range or, in the forward pass, if a block changes the shape.
        TypeError: If a network iterates over the blocks, as MMPretrain's ViT and Swin do: it would run each
            by itself. Give it ``nn.ModuleList([ReversibleBlocks(blocks)])``, which it takes for one block.

    Examples:
        >>> import torch
        >>> from torch import nn
        >>> blocks = ReversibleBlocks([nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0) for _ in range(6)])
        >>> blocks(torch.rand(10, 4, 8)).shape
        torch.Size([10, 4, 8])
    """

    def __init__(self, blocks: Iterable[nn.Module], beta: float = 0.1, save_memory: bool = True) -> None:
        super().__init__(*blocks)
        if not MIN_BETA <= beta < 1:
            raise ValueError(f'beta must be at least {MIN_BETA} and below 1, got {beta}')
        self.beta, self.save_memory = beta, save_memory

    def __iter__(self) -> Iterator[nn.Module]:
        raise TypeError(
            'ReversibleBlocks must be called as a whole, not block by block: give a network that iterates '
            'over its blocks nn.ModuleList([ReversibleBlocks(blocks)])'
        )

    def forward(self, x: Tensor, *arguments: Any) -> Tensor:
        """Run the blocks on a tensor of any shape.

        Args:
            x: The input.
            arguments: Passed to every block, such as the (H, W) of Swin's blocks. No tensors.

        Returns:
            The output of the last block, of the same shape as ``x``.
        """
        alpha = torch.full((1,) * x.ndim, self.beta, dtype=x.dtype, device=x.device)
        links = [
            [Coupling(index % 2, (1 - index % 2,), _Scaled(block, self.beta, arguments), alpha)]
            for index, block in enumerate(self._modules.values())  # children() would skip repeated blocks
        ]
        is_reversible = self.save_memory and self.training and torch.is_grad_enabled()
        run, levels = ReversibleChain(links) if is_reversible else couple, [x, x]
        for link in links:
            levels = run(link, x, levels)
        return levels[(len(links) - 1) % 2]
