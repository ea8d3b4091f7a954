"""Ridge regression and linear discriminant analysis, fitted to a stream of samples.

Both have closed-form solutions in terms of sums over samples. The result is therefore exact and depends
neither on the order of the samples nor on the batch size.

Letters: N samples, D features, T targets, K classes.
"""

from typing import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

CHUNK = 16384  # samples converted to float64 at a time
# In units of the features' mean variance. Rounding of float32 features makes values below 1e-10 useless.
RIDGES = tuple(10.0**exponent for exponent in range(-10, 1))


class Moments:
    """Sums of products of features and targets over samples, in float64.

    Attributes:
        xx: Sum of x x^T, (D + 1, D + 1), where x are the features with a 1 appended.
        xy: Sum of x y^T, (D + 1, T), where y are the targets.
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
        """Return the moments of both sets of samples together."""
        both = Moments()
        both.xx, both.xy, both.yy = self.xx + other.xx, self.xy + other.xy, self.yy + other.yy
        return both

    @property
    def means(self) -> tuple[Tensor, Tensor]:
        """Means of the features, (D,), and of the targets, (T,)."""
        count = self.xx[-1, -1]
        return self.xx[-1, :-1] / count, self.xy[-1] / count

    @property
    def covariances(self) -> tuple[Tensor, Tensor]:
        """Covariance matrix of the features, (D, D), and their covariance with the targets, (D, T)."""
        count = self.xx[-1, -1]
        mean_x, mean_y = self.means
        return (
            self.xx[:-1, :-1] / count - torch.outer(mean_x, mean_x),
            self.xy[:-1] / count - torch.outer(mean_x, mean_y),
        )

    def squared_error(self, weights: Tensor) -> Tensor:
        """Return the sum of (y - weights^T x)^2 over samples and targets; ``weights`` is (D + 1, T)."""
        return self.yy - 2 * (weights * self.xy).sum() + (weights * (self.xx @ weights)).sum()


def _ridge_solutions(moments: Moments, ridges: Sequence[float]) -> list[Tensor]:
    """Solve for the weights (D + 1, T) for each ridge. The last row, the intercept, is not penalised."""
    (mean_x, mean_y), (covariance, cross) = moments.means, moments.covariances
    variances, axes = torch.linalg.eigh(covariance)
    variances = variances.clamp(min=0)  # rounding can make them slightly negative
    unit = variances.mean().clamp(min=torch.finfo(variances.dtype).tiny)
    cross = axes.T @ cross
    weights = [axes @ (cross / (variances + ridge * unit)[:, None]) for ridge in ridges]
    return [torch.cat([w, (mean_y - mean_x @ w)[None]]) for w in weights]


def fit_ridge(
    training: Moments, validation: Moments, ridges: Sequence[float] = RIDGES
) -> tuple[Tensor, float]:
    """Fit ridge regression, with the ridge chosen on validation samples.

    The final fit uses the training and the validation samples.

    Args:
        training: Moments of the samples that every ridge is fitted to.
        validation: Moments of the samples that the ridge is chosen on.
        ridges: Candidates, in units of the features' mean variance.

    Returns:
        Weights (D + 1, T), whose last row is the intercept, and the chosen ridge.
    """
    errors = [validation.squared_error(weights) for weights in _ridge_solutions(training, ridges)]
    ridge = ridges[int(torch.stack(errors).argmin())]
    (weights,) = _ridge_solutions(training + validation, [ridge])
    return weights, ridge


def fit_discriminant(
    training: Moments, validation: Moments, ridges: Sequence[float] = RIDGES
) -> tuple[Tensor, float]:
    """Fit linear discriminant analysis, which scores classes; the highest score is the prediction.

    Least squares to one-hot targets finds the same directions, but hardly ever predicts rare classes when one
    class is much more frequent than the others (Hastie et al., The Elements of Statistical Learning, section
    4.2). The ridge is chosen by :func:`fit_ridge` and added to the within-class covariance.

    Args:
        training: Moments with one-hot targets of K classes.
        validation: Moments of the samples that the ridge is chosen on.
        ridges: See :func:`fit_ridge`.

    Returns:
        Weights (D + 1, K), whose last row is the intercept, and the chosen ridge. Classes without samples
        are never predicted.
    """
    _, ridge = fit_ridge(training, validation, ridges)
    moments = training + validation
    (mean, shares), (covariance, cross) = moments.means, moments.covariances
    offsets = cross / shares.clamp(min=torch.finfo(shares.dtype).tiny)  # class means minus the mean, (D, K)
    within = covariance - offsets * shares @ offsets.T
    unit = covariance.diagonal().mean().clamp(min=torch.finfo(shares.dtype).tiny)
    weights = torch.linalg.solve(within + ridge * unit * torch.eye(len(within)).to(within), offsets)
    intercept = shares.log() - (offsets / 2 * weights).sum(0) - mean @ weights
    return torch.cat([weights, intercept[None]]), ridge


def predict(weights: Tensor, features: Tensor) -> Tensor:
    """Predict targets (N, T) or class scores (N, K) from features (N, D), in float64."""
    return torch.cat([x.double() @ weights[:-1] + weights[-1] for x in features.split(CHUNK)])
