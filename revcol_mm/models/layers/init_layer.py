"""Weight initialisation of single layers."""

from torch import nn


def init_layer(module: nn.Module) -> None:
    """Initialise a convolution or linear layer (RevCol official code, FullNet._init_weights)."""
    if isinstance(module, (nn.Conv2d, nn.Linear)):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
