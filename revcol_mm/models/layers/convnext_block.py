"""The ConvNeXt block (arXiv 2201.03545, section 2), which RevCol's levels consist of."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .pointwise_linear import PointwiseLinear


class ConvNeXtBlock(nn.Module):
    """``x + drop_path(gamma * MLP(LayerNorm(depthwise_conv(x))))``.

    Parameter names are those of RevCol's official code (`models/modules.py`).

    Args:
        channels: Input and output channels C.
        kernel_size: Size of the depthwise convolution, odd.
        expansion: Width of the MLP's hidden layer as a multiple of C. RevCol official code: 4.
        drop_path_rate: Probability of skipping the residual branch of a sample during training.
        layer_scale_init_value: Initial value of ``gamma``.
    """

    def __init__(
        self,
        channels: int,
        kernel_size: int = 3,
        expansion: int = 4,
        drop_path_rate: float = 0.0,
        layer_scale_init_value: float = 1e-6,
    ) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(channels, channels, kernel_size, padding=kernel_size // 2, groups=channels)
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.pwconv1 = PointwiseLinear(channels, expansion * channels)
        self.pwconv2 = PointwiseLinear(expansion * channels, channels)
        self.gamma = nn.Parameter(torch.full((channels,), layer_scale_init_value))
        self.drop_path_rate = drop_path_rate

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W), in channels-last memory format if the input is."""
        x_last = self.dwconv(x).permute(0, 2, 3, 1)  # (B, H, W, C), a view if the input is channels-last
        hidden = self.pwconv1(self.norm(x_last))
        if torch.is_grad_enabled() or torch.jit.is_tracing() or self.pwconv1._forward_hooks:
            hidden = F.gelu(hidden)
        else:  # in place: nothing else reads the hidden layer, which is four times as large as the input
            torch.ops.aten.gelu_(hidden)
        branch = self.pwconv2(hidden).permute(0, 3, 1, 2)
        scale = self.gamma.view(1, -1, 1, 1)
        if self.training and self.drop_path_rate > 0:
            # Scaling the small gamma instead of the branch saves two passes over the feature map.
            keep_rate = 1 - self.drop_path_rate
            scale = scale * scale.new_empty(len(x), 1, 1, 1).bernoulli_(keep_rate).div_(keep_rate)
        return torch.addcmul(x, branch, scale)
