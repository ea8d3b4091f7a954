"""One level of a RevCol column: the function ``F`` of a coupling."""

from typing import Sequence

from torch import Tensor, nn

from .convnext_block import ConvNeXtBlock
from .level_fusion import LevelFusion


class Level(nn.Module):
    """A fusion of the level's inputs, followed by ConvNeXt blocks."""

    def __init__(self, fusion: LevelFusion, blocks: Sequence[ConvNeXtBlock]) -> None:
        super().__init__()
        self.fusion = fusion
        self.blocks = nn.Sequential(*blocks)

    def forward(self, below: Tensor, *above: Tensor) -> Tensor:
        """Inputs and output as in :class:`LevelFusion`."""
        return self.blocks(self.fusion(below, *above))
