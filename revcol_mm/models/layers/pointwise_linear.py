"""A linear layer applied to the channels at every position of a feature map."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PointwiseLinear(nn.Linear):
    """``nn.Linear`` for feature maps with channels in the last dimension.

    In float32 on a CPU it runs as a 1x1 convolution, the same product: PyTorch runs convolutions with oneDNN
    and linear layers with MKL, which does not use AVX-512 on AMD processors and takes twice as long. In
    bfloat16 both use oneDNN. Traced and compiled models contain a plain linear layer.
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
        x = x.permute(0, 3, 1, 2)  # a view in channels-last memory format
        return F.conv2d(x, self.weight[:, :, None, None], self.bias).permute(0, 2, 3, 1)
