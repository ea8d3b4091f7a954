"""Linear probes fitted to a stream of samples: ridge regression, and linear discriminants for classes.

Both are closed forms of sums over samples, so the result is exact and depends neither on the order of the
samples nor on how many are held at once.

Letters: N samples, D features, T targets, K classes.
"""

from typing import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

CHUNK = 16384  # samples that are converted to float64 at once
# In units of the features' mean variance. Features in float32 are not exact enough for less than 1e-10.
RIDGES = tuple(10.0**exponent for exponent in range(-10, 1))


class Moments:
    """Sums over samples of features x, with a 1 appended, and targets y, in float64.

    Attributes:
        xx: Sum of x x^T, (D + 1, D + 1).
        xy: Sum of x y^T, (D + 1, T).
        yy: Sum of y^T y, a scalar.
    """

    def __init__(self) -> None:
        self.xx = self.xy = self.yy = 0

    def add(self, features: Tensor, targets: Tensor) -> None:
        """Add samples: features (N, D), targets (N, T)."""
        for x, y in zip(features.split(CHUNK), targets.split(CHUNK)):
            x, y = F.pad(x.double(), (0, 1), value=1.0), y.double()
            self.xx = self.xx + x.T @ x
            self.xy = self.xy + x.T @ y
            self.yy = self.yy + y.square().sum()

    def __add__(self, other: 'Moments') -> 'Moments':
        """Those of both sets of samples."""
        both = Moments()
        both.xx, both.xy, both.yy = self.xx + other.xx, self.xy + other.xy, self.yy + other.yy
        return both

    @property
    def means(self) -> tuple[Tensor, Tensor]:
        """Of features, (D,), and of targets, (T,)."""
        count = self.xx[-1, -1]
        return self.xx[-1, :-1] / count, self.xy[-1] / count

    @property
    def covariances(self) -> tuple[Tensor, Tensor]:
        """Of features with features, (D, D), and with targets, (D, T)."""
        count = self.xx[-1, -1]
        mean_x, mean_y = self.means
        return (
            self.xx[:-1, :-1] / count - torch.outer(mean_x, mean_x),
            self.xy[:-1] / count - torch.outer(mean_x, mean_y),
        )

    def squared_error(self, weights: Tensor) -> Tensor:
        """Sum over samples and targets of (y - weights^T x)^2."""
        return self.yy - 2 * (weights * self.xy).sum() + (weights * (self.xx @ weights)).sum()


def _ridge_solutions(moments: Moments, ridges: Sequence[float]) -> list[Tensor]:
    """Weights (D + 1, T) for each ridge; the last row, the intercept, is not penalised."""
    (mean_x, mean_y), (covariance, cross) = moments.means, moments.covariances
    variances, axes = torch.linalg.eigh(covariance)
    variances = variances.clamp(min=0)  # rounding
    unit = variances.mean().clamp(min=torch.finfo(variances.dtype).tiny)
    cross = axes.T @ cross
    weights = [axes @ (cross / (variances + ridge * unit)[:, None]) for ridge in ridges]
    return [torch.cat([w, (mean_y - mean_x @ w)[None]]) for w in weights]


def fit_ridge(
    training: Moments, validation: Moments, ridges: Sequence[float] = RIDGES
) -> tuple[Tensor, float]:
    """Fit with the ridge that predicts the validation samples best, then all samples with that ridge.

    Args:
        training: Of the samples that solutions for all ridges are fitted to.
        validation: Of other samples.
        ridges: What to choose from, in units of the features' mean variance.

    Returns:
        Weights (D + 1, T), of which the last row is the intercept, and the ridge.
    """
    errors = [validation.squared_error(weights) for weights in _ridge_solutions(training, ridges)]
    ridge = ridges[int(torch.stack(errors).argmin())]
    (weights,) = _ridge_solutions(training + validation, [ridge])
    return weights, ridge


def fit_discriminant(
    training: Moments, validation: Moments, ridges: Sequence[float] = RIDGES
) -> tuple[Tensor, float]:
    """Linear discriminant analysis: scores of classes, the highest of which is the predicted one.

    Least squares to one-hot targets alone would not do where one class is much commoner than others: it finds
    the same directions, but hardly ever predicts the rare ones (Hastie et al., The Elements of Statistical
    Learning, section 4.2). The ridge is that of :func:`fit_ridge`, and added to the covariance within
    classes.

    Args:
        training: Moments whose targets are one-hot, K classes.
        validation: Of other samples.
        ridges: As in :func:`fit_ridge`.

    Returns:
        Weights (D + 1, K), of which the last row is the intercept, and the ridge. A class that has no samples
        is never predicted.
    """
    _, ridge = fit_ridge(training, validation, ridges)
    moments = training + validation
    (mean, shares), (covariance, cross) = moments.means, moments.covariances
    offsets = cross / shares.clamp(min=torch.finfo(shares.dtype).tiny)  # class means from the mean, (D, K)
    within = covariance - offsets * shares @ offsets.T
    unit = covariance.diagonal().mean().clamp(min=torch.finfo(shares.dtype).tiny)
    weights = torch.linalg.solve(within + ridge * unit * torch.eye(len(within)).to(within), offsets)
    intercept = shares.log() - (offsets / 2 * weights).sum(0) - mean @ weights
    return torch.cat([weights, intercept[None]]), ridge


def predict(weights: Tensor, features: Tensor) -> Tensor:
    """Targets (N, T), or scores (N, K), of features (N, D), in float64."""
    return torch.cat([x.double() @ weights[:-1] + weights[-1] for x in features.split(CHUNK)])
