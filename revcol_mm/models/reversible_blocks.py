"""Equal blocks, one after the other, that train without storing what is between them.

Letters: beta is the share of the block before last in a block's result.
"""

from typing import Any, Iterable

import torch
from torch import Tensor, nn

from revcol_mm.ops import Coupling, ReversibleChain, couple

MIN_BETA = 0.004  # of which a byte keeps what is lost


class _Scaled(nn.Module):
    """``(1 - beta) * block(x, ...)``."""

    def __init__(self, block: nn.Module, beta: float, arguments: tuple[Any, ...]) -> None:
        super().__init__()
        self.block, self.beta, self.arguments = block, beta, arguments

    def forward(self, x: Tensor) -> Tensor:
        """Any shape -> the same."""
        return (1 - self.beta) * self.block(x, *self.arguments)


class ReversibleBlocks(nn.Sequential):
    """``x_i = (1 - beta) * B_i(x_{i-1}) + beta * x_{i-2}``, where x_{-1} = x_0 is the input.

    A chain of two levels of one shape, of which every block updates one from the other, so that training
    stores neither. Where blocks change little, as those of pretrained networks do, it is the network
    ``x_i = B_i(x_{i-1})`` but for beta times what changes over two blocks; Dr2Net (CVPR 2024) trains
    pretrained networks so. Weights have the names that they have in an nn.Sequential.

    Args:
        blocks: Modules, each from a tensor to one of its shape: layers of a ViT, blocks of a stage.
        beta: From 0.004 to below 1. What a block's rounding loses is kept in 2 to 8 bits an element, so that
            what is reconstructed is exact for any.
        save_memory: Train reversibly.

    Raises:
        ValueError: If beta is none of these.

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
            raise ValueError(f'beta is from {MIN_BETA} to below 1, got {beta}')
        self.beta, self.save_memory = beta, save_memory

    def forward(self, x: Tensor, *arguments: Any) -> Tensor:
        """Any shape -> the same. Arguments that are no tensors go to every block, such as a Swin's (H, W)."""
        alpha = torch.full((1,) * x.ndim, self.beta, dtype=x.dtype, device=x.device)
        links = [
            [Coupling(index % 2, (1 - index % 2,), _Scaled(block, self.beta, arguments), alpha)]
            for index, block in enumerate(self)
        ]
        is_reversible = self.save_memory and self.training and torch.is_grad_enabled()
        run, levels = ReversibleChain(links) if is_reversible else couple, [x, x]
        for link in links:
            levels = run(link, x, levels)
        return levels[(len(links) - 1) % 2]
