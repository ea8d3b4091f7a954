"""The number of channels of a model's input images."""

from torch import nn


def image_channels(model: nn.Module) -> int:
    """Return the input channels of the first convolution of the model's backbone.

    Without a submodule named 'backbone', the model's first convolution counts; without any convolution,
    the result is 3.
    """
    backbones = (part for name, part in model.named_modules() if name.split('.')[-1] == 'backbone')
    for part in (*backbones, model):
        for module in part.modules():
            if isinstance(module, nn.Conv2d):
                return module.in_channels
    return 3
