"""Layer normalisation over the channels of a feature map."""

import torch.nn.functional as F
from torch import Tensor, nn


class LayerNorm2d(nn.LayerNorm):
    """Layer normalisation of (B, C, H, W) over C at every position, with PyTorch's fused kernel.

    The output has channels-last memory format, so after the first such layer of a network the permutations
    are views and nothing is copied.
    """

    def forward(self, x: Tensor) -> Tensor:
        x = F.layer_norm(x.permute(0, 2, 3, 1), self.normalized_shape, self.weight, self.bias, self.eps)
        return x.permute(0, 3, 1, 2)
