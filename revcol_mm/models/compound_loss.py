"""The compound loss of intermediate supervision (RevCol, arXiv 2212.11696, section 2.3, and official code).

Early columns are trained mostly to reconstruct the image, later ones mostly for the task. With m supervised
columns i = 0..m-1, reconstruction losses are weighted by ``1 - i / m`` and task losses by
``(i + 1) / (m + 1)``; the last column of the backbone has the full task loss.
"""

import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from revcol_mm.any_module import AnyModule

from .layers import LevelwiseDecoder


def quarter_columns(num_columns: int) -> list[int]:
    """Return the indices of the columns that end the first, second and third quarter of all columns.

    Raises:
        ValueError: If ``num_columns`` is not a multiple of 4.
    """
    if num_columns % 4:
        raise ValueError(
            'intermediate supervision after each quarter of the columns needs a multiple of 4 columns, got '
            f'{num_columns}'
        )
    return [quarter * num_columns // 4 - 1 for quarter in (1, 2, 3)]


def compound_weights(num_supervised: int, reconstruction: float, task: float) -> list[tuple[float, float]]:
    """Return the weights of the reconstruction loss and of the task loss of each supervised column.

    Args:
        num_supervised: Number m of supervised columns.
        reconstruction: Factor on all weights of reconstruction losses.
        task: Factor on all weights of task losses.
    """
    return [
        ((1 - i / num_supervised) * reconstruction, (i + 1) / (num_supervised + 1) * task)
        for i in range(num_supervised)
    ]


def require_mean_and_std(data_preprocessor: nn.Module) -> None:
    """Check that inputs can be converted back to images.

    Raises:
        ValueError: If the data preprocessor has no ``mean``.
    """
    if not hasattr(data_preprocessor, 'mean'):
        raise ValueError(
            'intermediate supervision reconstructs the image from the normalised input and needs a '
            f'data_preprocessor with mean and std, got {type(data_preprocessor).__name__} without'
        )


def levelwise_decoder(backbone: AnyModule) -> LevelwiseDecoder:
    """Build a decoder of the last level that a backbone of columns returns.

    Raises:
        ValueError: If a stride is not a multiple of the previous one.
    """
    last = backbone.out_indices[-1]
    channels = *backbone.channels[:last], backbone.out_channels[-1]
    strides = *backbone.strides[:last], backbone.out_strides[-1]
    return LevelwiseDecoder(channels, strides, backbone.in_channels)


def reconstruction_loss(
    decoder: nn.Module, feature: Tensor, inputs: Tensor, data_preprocessor: AnyModule, recompute: bool
) -> Tensor:
    """Return the binary cross entropy between the decoded image and the network's input, a scalar.

    Args:
        decoder: Decodes a feature to logits of the image, see :mod:`revcol_mm.models.layers.image_decoders`.
        feature: (B, C, h, w).
        inputs: Normalised images, (B, c, H, W). Where levels round sizes down, up to stride - 1 rows at the
            bottom and columns on the right are not covered by the feature and are ignored.
        data_preprocessor: Its ``mean`` and ``std``, in 0 to 255, convert inputs back to images.
        recompute: Run the decoder again in backward instead of storing its activations.
    """

    def compare(feature: Tensor) -> Tensor:
        decoded = decoder(feature)[..., : inputs.shape[-2], : inputs.shape[-1]]  # levels may round sizes up
        covered = inputs[..., : decoded.shape[-2], : decoded.shape[-1]]
        image = (covered * data_preprocessor.std + data_preprocessor.mean) / 255
        # RevCol official code: targets of 0 and 1 would need infinite logits.
        return F.binary_cross_entropy_with_logits(decoded, image.clamp(0.01, 0.99))

    if not recompute:
        return compare(feature)
    return checkpoint(compare, feature, use_reentrant=False, preserve_rng_state=False)
