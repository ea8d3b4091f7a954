"""Small reversible chains for tests."""

import torch
from torch import nn

from revcol_mm.ops import Coupling


class Summed(nn.Module):
    """``tanh(layers(sum of the inputs))``."""

    def __init__(self, *layers):
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, *inputs):
        return self.layers(sum(inputs)).tanh()


class Conv(Summed):
    """A function for ``chain_of``: a convolution with 4 channels, and optionally more layers."""

    def __init__(self, *more):
        super().__init__(nn.Conv2d(4, 4, 3, padding=1), *more)


def chain_of(functions, shape=(2, 4, 6, 5), alpha_shape=(4, 1, 1), alpha=None, **options):
    """Make links of two levels that read each other.

    Args:
        functions: One function for each coupling.
        shape: Shape of x and of the features.
        alpha_shape: Shape of each alpha, with random values from 0.3 to 0.8.
        alpha: Value of every alpha, instead of random values.
        options: Device and dtype of the tensors.

    Returns:
        The links, x and the initial features.
    """
    reads = ((None, 1), (0,))
    couplings = []
    for index, function in enumerate(functions):
        values = 0.3 + 0.5 * torch.rand(alpha_shape, **options) if alpha is None else alpha.clone()
        couplings.append(Coupling(index % 2, reads[index % 2], function.to(**options), nn.Parameter(values)))
    links = [couplings[i : i + 2] for i in range(0, len(couplings), 2)]
    x, *start = (torch.randn(shape, **options) for _ in range(3))
    return links, x, start


def linear_chain(num_links, size=3, alpha=None, **options):
    """Make a chain of linear functions with ``size`` features, see :func:`chain_of`."""
    functions = [Summed(nn.Linear(size, size)) for _ in range(2 * num_links)]
    return chain_of(functions, (32, size), (size,), alpha, **options)


def run_links(run, links, x, features):
    """Run all links by ``run(link, x, features)``."""
    for link in links:
        features = run(link, x, features)
    return features


def loss_of(run, links, x, features):
    return sum(feature.square().mean() for feature in run_links(run, links, x, features))


def parameters(links):
    """Return the trainable parameters of a chain, alphas included."""
    couplings = [coupling for link in links for coupling in link]
    return [p for c in couplings for p in (c.alpha, *c.function.parameters()) if p.requires_grad]
