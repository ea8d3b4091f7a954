"""How alike two representations of the same images are: unbiased linear CKA, over minibatches.

Centered kernel alignment of representations X and Y is HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)) with the linear
kernels K = X X^T and L = Y Y^T (Kornblith et al. 2019, arXiv 1905.00414). HSIC_1 (Song et al. 2012), the
unbiased estimator, can be averaged over minibatches (Nguyen, Raghu and Kornblith 2020, arXiv 2010.15327, section
3): memory does not depend on the number of images.

Letters: n images of a minibatch, R representations.
"""

from typing import Sequence

import torch
from torch import Tensor, nn

MIN_IMAGES = 4  # HSIC_1 divides by n - 3


def gram(features: Tensor) -> Tensor:
    """Linear kernel of n images, (n, n) in float64.

    Features are flattened and centred. HSIC_1 is the same without centring, but for rounding.

    Args:
        features: (n, ...).
    """
    features = features.flatten(1).double()
    features = features - features.mean(0)
    return features @ features.T


def unbiased_hsic(grams: Tensor) -> Tensor:
    """HSIC_1 of every two of R kernels, Song et al.'s eq. 5.

    With the kernels' diagonals set to 0 and 1 a vector of ones it is ::

        (tr(K L) + (1'K 1)(1'L 1) / ((n - 1)(n - 2)) - 2 (1'K L 1) / (n - 2)) / (n (n - 3))

    Args:
        grams: (R, n, n), symmetric.

    Returns:
        (R, R).

    Raises:
        ValueError: If n is less than 4.
    """
    n = grams.shape[-1]
    if n < MIN_IMAGES:
        raise ValueError(f'unbiased HSIC takes at least {MIN_IMAGES} images in a minibatch, got {n}')
    grams = grams - torch.diag_embed(grams.diagonal(dim1=1, dim2=2))
    rows = grams.sum(2)
    sums = rows.sum(1)
    traces = grams.flatten(1) @ grams.flatten(1).T
    hsic = traces + torch.outer(sums, sums) / ((n - 1) * (n - 2)) - 2 / (n - 2) * rows @ rows.T
    return hsic / (n * (n - 3))


class MinibatchCKA:
    """CKA of every two of R representations, from minibatch after minibatch.

    Example:
        >>> import torch
        >>> from revcol_mm.analysis.cka import MinibatchCKA, gram
        >>> cka = MinibatchCKA()
        >>> for _ in range(3):
        ...     features = torch.rand(8, 5)
        ...     cka.update([gram(features), gram(2 * features + 1)])
        >>> cka.compute().round(decimals=6).tolist()
        [[1.0, 1.0], [1.0, 1.0]]
    """

    def __init__(self) -> None:
        self.hsic: Tensor | None = None  # a sum: the number of minibatches cancels

    def update(self, grams: Sequence[Tensor]) -> None:
        """Add a minibatch.

        Args:
            grams: :func:`gram` of each representation, of the same n images.
        """
        hsic = unbiased_hsic(torch.stack(list(grams)))
        self.hsic = hsic if self.hsic is None else self.hsic + hsic

    def compute(self) -> Tensor:
        """CKA, (R, R); nan for a representation that does not vary. It may exceed 1, or fall below 0, a little."""
        scale = self.hsic.diagonal().clamp(min=0).sqrt()
        return self.hsic / torch.outer(scale, scale)


def layer_grams(network: nn.Module, image: Tensor, layers: Sequence[str]) -> list[Tensor]:
    """:func:`gram` of the outputs of some of a network's layers, while it runs.

    Args:
        network: Called with ``image``.
        image: Images, (n, 3, H, W).
        layers: Names of modules that return one tensor (n, ...).
    """
    grams = {}

    def keep(name: str):
        def hook(module: nn.Module, inputs: tuple, output: Tensor) -> None:
            grams[name] = gram(output)

        return hook

    hooks = [network.get_submodule(name).register_forward_hook(keep(name)) for name in layers]
    try:
        network(image)
    finally:
        for hook in hooks:
            hook.remove()
    return [grams[name] for name in layers]
