"""A network of many equal blocks that trains without storing what is between them.

Letters: beta is the share of the block before last in a block's result.
"""

from typing import Iterable

import torch
from torch import Tensor, nn

from revcol_mm.ops import Coupling, ReversibleChain, couple


class _Scaled(nn.Module):
    """``(1 - beta) * block(x)``."""

    def __init__(self, block: nn.Module, beta: float) -> None:
        super().__init__()
        self.block, self.beta = block, beta

    def forward(self, x: Tensor) -> Tensor:
        return (1 - self.beta) * self.block(x)


class ReversibleBlocks(nn.Module):
    """``x_i = (1 - beta) * B_i(x_{i-1}) + beta * x_{i-2}``, where x_{-1} = x_0 is the input.

    A chain of two levels of one shape, of which every block updates one from the other, so that training
    stores neither. Where blocks change little, as those of pretrained networks do, it is the network
    ``x_i = B_i(x_{i-1})`` but for beta times what changes over two blocks; Dr2Net (CVPR 2024) trains
    pretrained networks so.

    Args:
        blocks: Modules, each from a tensor to one of its shape: layers of a ViT, blocks of a stage.
        beta: Above 0. What a block's rounding loses is kept in ``log2(1 / beta)`` bits an element, so that
            reconstruction is exact for any.
        save_memory: Train reversibly.

    Raises:
        ValueError: If beta is not between 0.002 and 1.
    """

    def __init__(self, blocks: Iterable[nn.Module], beta: float = 0.1, save_memory: bool = True) -> None:
        super().__init__()
        if not 0.002 <= beta < 1:
            raise ValueError(f'beta is from 0.002 to below 1, got {beta}')
        self.blocks, self.beta, self.save_memory = nn.ModuleList(blocks), beta, save_memory
        self.functions = [_Scaled(block, beta) for block in self.blocks]

    def forward(self, x: Tensor) -> Tensor:
        """Any shape -> the same."""
        alpha = torch.full((1,) * x.ndim, self.beta, dtype=x.dtype, device=x.device)
        links = [
            [Coupling(index % 2, (1 - index % 2,), function, alpha)]
            for index, function in enumerate(self.functions)
        ]
        is_reversible = self.save_memory and self.training and torch.is_grad_enabled()
        run, levels = ReversibleChain(links) if is_reversible else couple, [x, x]
        for link in links:
            levels = run(link, x, levels)
        return levels[(len(links) - 1) % 2]
