"""How many channels the images of a model have."""

from torch import nn


def image_channels(model: nn.Module) -> int:
    """Tell how many channels a model's images have: those that its backbone's first convolution reads.

    Without a part that is called backbone it is the model's first convolution, without any 3.
    """
    backbones = (part for name, part in model.named_modules() if name.split('.')[-1] == 'backbone')
    for part in (*backbones, model):
        for module in part.modules():
            if isinstance(module, nn.Conv2d):
                return module.in_channels
    return 3
