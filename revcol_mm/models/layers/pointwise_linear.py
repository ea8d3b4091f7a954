"""A linear layer on the channels of every pixel."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PointwiseLinear(nn.Linear):
    """``nn.Linear`` for feature maps with their channels last.

    In float32 on a CPU it is computed as a 1x1 convolution, which is the same product: PyTorch gives
    convolutions to oneDNN, and linear layers to MKL, which on AMD's processors makes no use of AVX-512 and
    takes twice as long. (In bfloat16 oneDNN has both.) What is traced or compiled keeps a linear layer.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, in_features) -> (B, H, W, out_features)."""
        as_convolution = (
            x.device.type == 'cpu'
            and x.dtype == self.weight.dtype == torch.float32
            and not torch.is_autocast_enabled('cpu')
            and not torch.jit.is_tracing()
            and not torch.compiler.is_compiling()
            and torch.backends.mkldnn.is_available()
        )
        if not as_convolution:
            return super().forward(x)
        x = x.permute(0, 3, 1, 2)  # a view, channels-last in memory
        return F.conv2d(x, self.weight[:, :, None, None], self.bias).permute(0, 2, 3, 1)
