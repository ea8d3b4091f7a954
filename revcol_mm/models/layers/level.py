"""``F`` of RevCol's couplings: a level of a column."""

from typing import Sequence

from torch import Tensor, nn

from .convnext_block import ConvNeXtBlock
from .level_fusion import LevelFusion


class Level(nn.Module):
    """Fusion, then ConvNeXt blocks.

    Args:
        fusion: Joins the inputs of the level.
        blocks: The blocks that follow.
    """

    def __init__(self, fusion: LevelFusion, blocks: Sequence[ConvNeXtBlock]) -> None:
        super().__init__()
        self.fusion = fusion
        self.blocks = nn.Sequential(*blocks)

    def forward(self, below: Tensor, *above: Tensor) -> Tensor:
        """Inputs and output as in :class:`LevelFusion`."""
        return self.blocks(self.fusion(below, *above))
