"""Pictures of feature maps, with their first three principal components as red, green and blue.

Letters: N columns, L levels; C_l channels, h_l and w_l height and width of level l without padding.
"""

from typing import NamedTuple, Sequence

import numpy as np
import torch
from matplotlib.figure import Figure
from mmengine.model import BaseModel
from sklearn.decomposition import PCA
from torch import Tensor

from revcol_mm.models import ColumnBackbone

FITS = ('level', 'map')
NUM_COMPONENTS = 3  # red, green, blue
CLIPPED = (1, 99)  # percentiles of a component that are mapped to 0 and 1


class FeatureMaps(NamedTuple):
    """Coloured feature maps of one image.

    Args:
        colours: For each column and level, (h_l, w_l, 3), 0 to 1.
        explained: Share of each map's variance that its colours explain, (N, L); NaN for a constant map.
        channels: C_l of every level.
    """

    colours: list[list[np.ndarray]]
    explained: np.ndarray
    channels: tuple[int, ...]


def column_backbone(model: BaseModel) -> ColumnBackbone:
    """Return the model's backbone.

    Raises:
        ValueError: If the backbone has no columns.
    """
    backbone = getattr(model, 'backbone', None)
    if not isinstance(backbone, ColumnBackbone):
        if backbone is None:
            raise ValueError(
                'an exported file has no backbone to look into: give the checkpoint it was made of'
            )
        raise ValueError(f'the backbone of the model has no columns: it is a {type(backbone).__name__}')
    return backbone


@torch.no_grad()
def feature_maps(
    backbone: ColumnBackbone, inputs: Tensor, size: Sequence[int], fit: str = 'level'
) -> FeatureMaps:
    """Colour the feature maps of one image.

    Args:
        backbone: The backbone, in evaluation mode.
        inputs: The normalised image, (1, C, H', W').
        size: Height and width of the image without padding, in pixels. Maps are cropped accordingly.
        fit: What principal components are computed from. 'level': all columns of a level together, so that a
            colour means the same direction in every column (reversible couplings relate columns channel by
            channel). 'map': each map separately, which explains more of its variance, but colours of
            different maps cannot be compared.

    Raises:
        ValueError: If ``fit`` is invalid, or the image does not suit :meth:`RevCol.forward_columns`.
    """
    if fit not in FITS:
        raise ValueError(f'fit must be {" or ".join(FITS)}, got {fit!r}')
    levels = [[] for _ in backbone.channels]
    for column in backbone.forward_columns(inputs):
        for level, features in enumerate(column):
            height, width = (-(-side // backbone.strides[level]) for side in size)
            levels[level].append(features[0, :, :height, :width].float().cpu().numpy())
    coloured = []
    for maps in levels:
        groups = [maps] if fit == 'level' else [[single] for single in maps]
        coloured.append([result for group in groups for result in principal_colours(group)])
    return FeatureMaps(
        [[level[column][0] for level in coloured] for column in range(backbone.num_columns)],
        np.array([[share for _, share in level] for level in coloured]).T,
        backbone.channels,
    )


def principal_colours(maps: Sequence[np.ndarray]) -> list[tuple[np.ndarray, float]]:
    """Colour maps by their common principal components.

    Every map is first centred and scaled to unit variance, because the scale differs between columns.

    Args:
        maps: (C, h, w) each.

    Returns:
        For each map: its colours, (h, w, 3), 0 to 1 on a common scale; and the share of its variance that
        they explain, NaN for a constant map.
    """
    pixels = [single.reshape(len(single), -1).T for single in maps]
    pixels = [values - values.mean(0) for values in pixels]
    deviations = [np.sqrt(values.var(0).sum()) for values in pixels]
    pixels = [values / (deviation or 1) for values, deviation in zip(pixels, deviations)]
    together = np.concatenate(pixels)
    components = np.zeros((NUM_COMPONENTS, together.shape[1]), together.dtype)
    num_components = min(NUM_COMPONENTS, *together.shape)
    pca = PCA(num_components, svd_solver='covariance_eigh').fit(together)
    components[:num_components] = pca.components_
    projected = [values @ components.T for values in pixels]
    low, high = np.percentile(np.concatenate(projected), CLIPPED, axis=0)
    span = np.where(high > low, high - low, 1)
    return [
        (
            np.clip((values - low) / span, 0, 1).reshape(*single.shape[1:], NUM_COMPONENTS),
            float(values.var(0).sum()) if deviation else float('nan'),
        )
        for values, single, deviation in zip(projected, maps, deviations)
    ]


def draw_feature_maps(picture: np.ndarray, maps: FeatureMaps) -> Figure:
    """Draw the input image, (h, w, 3), RGB, and its feature maps, with levels as rows, columns as columns."""
    num_columns, num_levels = maps.explained.shape
    height, width = (side / max(picture.shape[:2]) for side in picture.shape[:2])
    cell = 1.5  # longer side of a map, in inches
    figure = Figure(
        figsize=(cell * width * (num_columns + 2) + 1, (cell * height + 0.3) * num_levels + 0.6),
        layout='constrained',
    )
    grid = figure.add_gridspec(num_levels, num_columns + 2)
    axis = figure.add_subplot(grid[:, :2])
    axis.imshow(picture)
    axis.set_title(f'input, {picture.shape[0]} x {picture.shape[1]} pixels', fontsize='medium')
    axis.set_axis_off()
    for column in range(num_columns):
        for level in range(num_levels):
            axis = figure.add_subplot(grid[level, column + 2])
            axis.imshow(maps.colours[column][level], interpolation='nearest')
            axis.set_xticks([])
            axis.set_yticks([])
            share = maps.explained[column, level]
            axis.set_xlabel('constant' if np.isnan(share) else f'{share:.0%}', fontsize='small', labelpad=1)
            if level == 0:
                axis.set_title(f'column {column}', fontsize='medium')
            if column == 0:
                axis.set_ylabel(f'level {level}\n{maps.channels[level]} channels', fontsize='medium')
    figure.supxlabel('below each map: the share of its variance that its colours show', fontsize='small')
    return figure
