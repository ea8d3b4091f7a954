"""Weights that layers begin with."""

from torch import nn


def init_layer(module: nn.Module) -> None:
    """Set weights and bias of a convolution or linear layer (RevCol official code, FullNet._init_weights)."""
    if isinstance(module, (nn.Conv2d, nn.Linear)):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
