"""Feature maps of every column and level in colours: their three principal components as red, green and blue.

Letters: N columns, L levels; C_l channels, h_l and w_l size of level l, as far as the image reaches.
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
CLIPPED = (1, 99)  # percentiles of a component that become the darkest and the brightest value


class FeatureMaps(NamedTuple):
    """What is drawn.

    Args:
        colours: For each column and level, (h_l, w_l, 3), 0 to 1.
        explained: The share of each map's variance that its colours show, (N, L). NaN: the map is constant.
        channels: C_l of every level.
    """

    colours: list[list[np.ndarray]]
    explained: np.ndarray
    channels: tuple[int, ...]


def column_backbone(model: BaseModel) -> ColumnBackbone:
    """The model's backbone.

    Raises:
        ValueError: If it is not made of columns.
    """
    backbone = getattr(model, 'backbone', None)
    if not isinstance(backbone, ColumnBackbone):
        raise ValueError(f'the backbone of the model has no columns: it is a {type(backbone).__name__}')
    return backbone


@torch.no_grad()
def feature_maps(
    backbone: ColumnBackbone, inputs: Tensor, size: Sequence[int], fit: str = 'level'
) -> FeatureMaps:
    """Colour all maps of one image.

    Args:
        backbone: In evaluation mode.
        inputs: The normalised image, (1, C, H', W').
        size: Its height and width without padding, in pixels; maps are cut to them.
        fit: 'level': one set of components for all columns of a level, whose channels the couplings tie one
            by one: the same colour is the same direction in every column. Before, maps are centred and
            divided by their standard deviation, for it differs between columns. 'map': components of each
            map alone, which show more of it, but the same colour means something else in every map.

    Raises:
        ValueError: If ``fit`` is neither, or see :meth:`RevCol.forward_columns`.
    """
    if fit not in FITS:
        raise ValueError(f'fit is {" or ".join(FITS)}, got {fit!r}')
    levels = [[] for _ in backbone.channels]
    for column in backbone.forward_columns(inputs):
        for level, features in enumerate(column):
            height, width = (-(-side // (4 * 2**level)) for side in size)
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
    """Colour maps by the principal components of them all, each centred and of unit variance.

    Args:
        maps: (C, h, w) each.

    Returns:
        For each map the colours, (h, w, 3), 0 to 1 on a scale that all share, and the share of its variance
        that is in them.
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
    """Draw the maps, one level a row and one column a column, beside the image.

    Args:
        picture: What the network sees, (h, w, 3), RGB.
        maps: Its feature maps.

    Returns:
        A figure, to be saved.
    """
    num_columns, num_levels = maps.explained.shape
    height, width = (side / max(picture.shape[:2]) for side in picture.shape[:2])
    cell = 1.5  # inches of a map's longer side
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
