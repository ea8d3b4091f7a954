"""Unbiased linear CKA (centered kernel alignment), the similarity of two representations of the same images.

CKA of representations X and Y is HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)) with the linear kernels K = X X^T
and L = Y Y^T (Kornblith et al. 2019, arXiv 1905.00414). The unbiased estimator HSIC_1 (Song et al. 2012) can
be averaged over minibatches (Nguyen, Raghu and Kornblith 2020, arXiv 2010.15327, section 3), so memory does
not depend on the number of images.

Images can be compared as a whole or place by place. In the second case HSIC_1 is estimated over the images
separately for every place and then averaged over places, because places of the same image are not independent
samples.

Letters: n images of a minibatch, P places, R representations.
"""

from typing import Any, Sequence

import torch
from torch import Tensor, nn

MIN_IMAGES = 4  # HSIC_1 divides by n - 3


def gram(features: Tensor, grid: tuple[int, int] = (1, 1)) -> Tensor:
    """Compute the linear kernel of n images at each of P places.

    The features of a place are flattened and centred over the images. Centring does not change HSIC_1, but
    reduces rounding errors.

    Args:
        features: (n, C, H, W), or (n, ...) with a grid of one place.
        grid: Number of places along height and width; (1, 1) compares whole images.

    Returns:
        (P, n, n) in float64.

    Raises:
        ValueError: If the features cannot be divided into the grid.
    """
    rows, columns = grid
    if grid == (1, 1):
        places = features.flatten(1)[None]
    elif features.ndim == 4 and features.shape[2] % rows == 0 and features.shape[3] % columns == 0:
        places = features.unflatten(3, (columns, -1)).unflatten(2, (rows, -1))
        places = places.permute(2, 4, 0, 1, 3, 5).flatten(3).flatten(0, 1)
    else:
        raise ValueError(f'features {tuple(features.shape)} cannot be divided into {rows} x {columns} places')
    places = places.double()
    places = places - places.mean(1, keepdim=True)
    return places @ places.mT


def unbiased_hsic(grams: Tensor) -> Tensor:
    """Compute HSIC_1 (Song et al. 2012, eq. 5) of every pair of R kernels, summed over places.

    With the kernels' diagonals set to 0 and 1 a vector of ones, HSIC_1 is ::

        (tr(K L) + (1'K 1)(1'L 1) / ((n - 1)(n - 2)) - 2 (1'K L 1) / (n - 2)) / (n (n - 3))

    Args:
        grams: :func:`gram` of each representation, (R, P, n, n), of the same images and places.

    Returns:
        (R, R).

    Raises:
        ValueError: If n is less than 4.
    """
    n = grams.shape[-1]
    if n < MIN_IMAGES:
        raise ValueError(f'unbiased HSIC takes at least {MIN_IMAGES} images in a minibatch, got {n}')
    grams = grams - torch.diag_embed(grams.diagonal(dim1=-2, dim2=-1))
    rows = grams.sum(-1)
    traces, sums, products = (part @ part.T for part in (grams.flatten(1), rows.sum(-1), rows.flatten(1)))
    return (traces + sums / ((n - 1) * (n - 2)) - products * 2 / (n - 2)) / (n * (n - 3))


def cka(hsic: Tensor) -> Tensor:
    """Compute CKA of every pair of R representations, (R, R), from the sum of HSIC_1 over minibatches.

    A sum suffices: the number of summands cancels in the ratio. Values can lie slightly outside 0 to 1. They
    are nan for a representation that does not vary.

    Examples:
        >>> import torch
        >>> from revcol_mm.analysis.cka import cka, gram, unbiased_hsic
        >>> hsic = 0
        >>> for _ in range(3):
        ...     features = torch.rand(8, 5)
        ...     hsic = hsic + unbiased_hsic(torch.stack([gram(features), gram(2 * features + 1)]))
        >>> cka(hsic).round(decimals=6).tolist()
        [[1.0, 1.0], [1.0, 1.0]]
    """
    scale = hsic.diagonal().clamp(min=0).sqrt()
    return hsic / torch.outer(scale, scale)


def layer_grams(
    network: nn.Module, image: Tensor, layers: Sequence[str], grid: tuple[int, int] = (1, 1)
) -> list[Tensor]:
    """Run a network on images, (n, 3, H, W), and compute :func:`gram` of the outputs of the named layers.

    Raises:
        ValueError: If a layer does not run, or its output is not a tensor that can be divided into the grid.
    """
    grams = {}

    def keep(name: str):
        def hook(module: nn.Module, inputs: tuple, output: Any) -> None:
            if not isinstance(output, Tensor):
                raise ValueError(f'layer {name} returns a {type(output).__name__}, not a tensor')
            grams[name] = gram(output, grid)

        return hook

    hooks = [network.get_submodule(name).register_forward_hook(keep(name)) for name in layers]
    try:
        network(image)
    finally:
        for hook in hooks:
            hook.remove()
    if idle := [name for name in layers if name not in grams]:
        raise ValueError(f'layers do not run: {", ".join(idle)}')
    return [grams[name] for name in layers]
