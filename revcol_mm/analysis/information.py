"""Linear probes, which measure how much a network's features tell about its images and their labels.

Letters: B images; C channels, h and w height and width of a feature map; n samples per image, each with D
features and T targets.
"""

from collections import defaultdict
from typing import Iterator

import numpy as np
import torch
from mmengine.model import BaseModel
from torch import Tensor
from torch.nn import functional as F

from revcol_mm.evaluation.confusion import class_scores, count_confusion

from .labelled_images import UNLABELLED, Batch
from .linear_probe import Moments, fit_discriminant, fit_ridge, predict

ALL = 'all'
IMAGE, LABELS = 'image', 'labels'


def columns_of(model: BaseModel, batch: Batch) -> Iterator[list[Tensor]]:
    """Yield the levels, (B, C, h, w), of every column. A network without columns yields its stages once.

    Raises:
        ValueError: If a level is not a feature map with one stride that divides the images.
    """
    backbone, inputs = model.backbone, model.data_preprocessor(batch.data)['inputs']
    height, width = batch.images.shape[2:]
    for levels in (
        backbone.forward_columns(inputs) if hasattr(backbone, 'forward_columns') else [backbone(inputs)]
    ):
        for level in levels:
            if (
                level.ndim != 4
                or height % level.shape[2]
                or height * level.shape[3] != width * level.shape[2]
            ):
                raise ValueError(
                    f'{type(backbone).__name__}: features {tuple(level.shape)} do not divide images of '
                    f'{height} x {width} into cells: choose other out_indices or another --size; columns '
                    'made of a ViT cannot be probed, because their features also contain tokens'
                )
        yield list(levels)


def cells(maps: Tensor) -> Tensor:
    """Reshape (B, C, h, w) to (B, h * w, C)."""
    return maps.flatten(2).mT


class Probes:
    """Image and label probes for every level of every column, and for all levels of a column together.

    Call :meth:`train` for all training batches, then :meth:`fit`, then :meth:`test` for all test batches.
    """

    def __init__(self, model: BaseModel, num_classes: int) -> None:
        self.model = model
        self.num_classes = num_classes
        self.moments = defaultdict(lambda: (Moments(), Moments()))  # training and validation samples
        self.weights, self.ridges = {}, {}
        self.squared_errors = defaultdict(float)  # summed over pixels and channels
        self.confusion = defaultdict(int)

    def _samples(self, batch: Batch) -> Iterator[tuple[tuple, Tensor, Tensor]]:
        """Yield the key, the features (B, n, D) and the targets of every probe.

        Targets are pixels, (B, n, T), for image probes and classes, (B, n), for label probes.
        """
        for column, levels in enumerate(columns_of(self.model, batch)):
            images, labels = (tensor.to(levels[0].device) for tensor in (batch.images, batch.labels))
            finest = levels[0].shape[2:]
            together = torch.cat([F.interpolate(level, finest, mode='bilinear') for level in levels], 1)
            for name, maps in (*enumerate(levels), (ALL, together)):
                stride = images.shape[2] // maps.shape[2]
                yield (IMAGE, column, name), cells(maps), cells(F.pixel_unshuffle(images, stride))
                if labels.ndim == 1:
                    yield (LABELS, column, name), maps.mean((2, 3))[:, None], labels[:, None]
                else:
                    read = F.interpolate(maps, labels.shape[1:], mode='bilinear')
                    yield (LABELS, column, name), cells(read), labels.flatten(1)

    def train(self, batch: Batch, validation: Tensor) -> None:
        """Add a training batch. The ridge is chosen on images for which ``validation``, (B,), is True."""
        for key, features, targets in self._samples(batch):
            for moments, chosen in zip(self.moments[key], (~validation, validation)):
                x, y = features[chosen].flatten(0, 1), targets[chosen].flatten(0, 1)
                if key[0] == LABELS:
                    x, y = x[y != UNLABELLED], F.one_hot(y[y != UNLABELLED], self.num_classes)
                moments.add(x, y)

    def fit(self) -> None:
        """Solve for the weights of all probes and free the sums over training samples."""
        while self.moments:
            key, moments = self.moments.popitem()
            fit = fit_ridge if key[0] == IMAGE else fit_discriminant
            self.weights[key], self.ridges[key] = fit(*moments)

    def test(self, batch: Batch) -> None:
        """Add a test batch."""
        for key, features, targets in self._samples(batch):
            predicted, targets = predict(self.weights[key], features.flatten(0, 1)), targets.flatten(0, 1)
            if key[0] == IMAGE:
                self.squared_errors[key] += (predicted - targets).square().sum().item()
            else:
                known = targets != UNLABELLED
                self.confusion[key] += count_confusion(
                    targets[known], predicted[known].argmax(1), self.num_classes
                )

    def rows(self, num_values: int, network: str) -> list[dict]:
        """Return the test results of every level of every column, and of all levels together.

        Args:
            num_values: Number of pixels times channels of all test images.
            network: Name of the network, added to every row.
        """
        return [
            dict(
                network=network,
                column=column,
                level=level,
                psnr=psnr(squared_error, num_values),
                **label_scores(self.confusion[LABELS, column, level]),
                image_ridge=self.ridges[IMAGE, column, level],
                label_ridge=self.ridges[LABELS, column, level],
            )
            for (_, column, level), squared_error in self.squared_errors.items()
        ]


class TrivialPrediction:
    """The mean training image and the most frequent class as predictions, to compare probes with."""

    def __init__(self, num_classes: int) -> None:
        self.image_sum, self.num_images = 0, 0
        self.counts = torch.zeros(num_classes, dtype=torch.long)
        self.squared_error, self.num_values, self.confusion = 0.0, 0, 0

    def train(self, batch: Batch) -> None:
        """Add a training batch."""
        self.image_sum = self.image_sum + batch.images.double().sum(0)
        self.num_images += len(batch.images)
        self.counts += torch.bincount(batch.labels[batch.labels != UNLABELLED], minlength=len(self.counts))

    def test(self, batch: Batch) -> None:
        """Add a test batch."""
        self.squared_error += (batch.images - self.image_sum / self.num_images).square().sum().item()
        self.num_values += batch.images.numel()
        labels = batch.labels[batch.labels != UNLABELLED]
        predicted = self.counts.argmax().expand(labels.shape)
        self.confusion = self.confusion + count_confusion(labels, predicted, len(self.counts))

    def scores(self) -> dict[str, float]:
        """Return PSNR, accuracy and mean IoU."""
        return dict(psnr=psnr(self.squared_error, self.num_values), **label_scores(self.confusion))


def psnr(squared_error: float, num_values: int) -> float:
    """Return the peak signal-to-noise ratio, in dB, of values from 0 to 1."""
    return -10 * np.log10(max(squared_error / num_values, np.finfo(float).tiny))


def label_scores(confusion: Tensor) -> dict[str, float]:
    """Return the accuracy and the mean IoU of a confusion matrix, in percent."""
    accuracy = confusion.diagonal().sum() / confusion.sum()
    return dict(accuracy=100 * accuracy.item(), miou=100 * class_scores(confusion)['iou'].nanmean().item())
