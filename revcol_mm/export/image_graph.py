"""Base of the modules that are exported: raw images in, predictions out.

Shapes: B batch, C, H and W channels, height and width of the images, K classes.
"""

from typing import Any, Sequence

import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from revcol_mm.any_module import AnyModule


def take(values: Tensor, index: Tensor) -> Tensor:
    """Select along dimension 1, in each image on its own.

    Tensor.take_along_dim does the same, but with it torch.export specialises on the batch size.

    Args:
        values: (B, M, ...).
        index: (B, N), from 0 to M - 1.

    Returns:
        (B, N, ...).
    """
    index = index.reshape(*index.shape, *[1] * (values.dim() - 2))
    return values.gather(1, index.expand(-1, -1, *values.shape[2:]))


class ImageGraph(nn.Module):
    """A network with the model's normalisation in front.

    Args:
        preprocessor: The model's data preprocessor, whose ``mean`` and ``std`` are used if it has them.
        network: Takes normalised images, (B, C, H, W); returns a tensor or a tuple of tensors.
        outputs: Name and description of each output tensor, in order.

    Attributes:
        min_side: Smallest height and width that an exported file accepts, in pixels.
        tolerance: Largest :meth:`difference` of an exported file that rounding explains.
    """

    tolerance = 1e-4
    min_side = 64  # below, a level of stride 32 is one pixel wide, which torch.export would specialise on

    pixel_mean: Tensor | None
    pixel_std: Tensor | None

    def __init__(self, preprocessor: AnyModule, network: AnyModule, outputs: dict[str, str]) -> None:
        super().__init__()
        self.network = network
        self.outputs = dict(outputs)
        self.register_buffer('pixel_mean', getattr(preprocessor, 'mean', None))
        self.register_buffer('pixel_std', getattr(preprocessor, 'std', None))

    @property
    def output_names(self) -> tuple[str, ...]:
        return tuple(self.outputs)

    def forward(self, image: Tensor) -> Any:
        """Run the network on images, (B, C, H, W), with values from 0 to 255."""
        return self.network(self.normalised(image))

    def normalised(self, image: Tensor) -> Tensor:
        """Normalise images with values from 0 to 255."""
        return image if self.pixel_mean is None else (image - self.pixel_mean) / self.pixel_std

    def difference(self, outputs: Sequence[Tensor], image: Tensor) -> float:
        """Return the largest error of an exported file's outputs, relative to the largest value."""
        expected = tree_leaves(self(image))
        return max(
            ((actual - right).abs().max() / right.abs().max()).item()
            for actual, right in zip(outputs, expected, strict=True)
        )


class SegmentationGraph(ImageGraph):
    """A segmentor that predicts on the whole image, without sliding windows, in the size of the image.

    Args:
        preprocessor: See :class:`ImageGraph`.
        network: Returns logits, (B, K, h, w).
        align_corners: Of the segmentation head, for the interpolation of the logits.
    """

    def __init__(self, preprocessor: AnyModule, network: AnyModule, align_corners: bool) -> None:
        outputs = {
            'labels': 'int64, (B, H, W): the likeliest class of each pixel',
            'scores': 'float32, (B, H, W): its score',
        }
        super().__init__(preprocessor, network, outputs)
        self.align_corners = align_corners

    def class_scores(self, image: Tensor) -> Tensor:
        """Return the softmax scores of every pixel, (B, K, H, W)."""
        logits, size = super().forward(image), image.shape[-2:]
        return F.interpolate(logits, size, mode='bilinear', align_corners=self.align_corners).softmax(1)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Return the likeliest class of every pixel, int64, and its score, both (B, H, W)."""
        scores, labels = self.class_scores(image).max(1)
        return labels, scores

    def difference(self, outputs: Sequence[Tensor], image: Tensor) -> float:
        """Return the larger of two errors of an exported file.

        The first is how much lower this graph scores the file's label than its own; the second is the
        relative error of the scores. So two classes with equal scores may be swapped.
        """
        labels, scores = outputs
        own = self.class_scores(image)
        expected = own.amax(1)
        lower = (expected - own.gather(1, labels[:, None])[:, 0]).max()
        return max(lower.item(), ((scores - expected).abs().max() / expected.abs().max()).item())
