"""Matrices as heat maps with their numbers in them."""

from typing import Sequence

import matplotlib
import numpy as np

matplotlib.use('Agg')
from matplotlib.axes import Axes
from matplotlib.image import AxesImage

MAX_NUMBERS = 16  # rows or columns; in more, numbers are too small to read


def heat_map(
    axis: Axes, matrix: np.ndarray, rows: Sequence[str], columns: Sequence[str], title: str
) -> AxesImage:
    """Draw a matrix whose values lie between 0 and 1.

    Args:
        axis: Where.
        matrix: (len(rows), len(columns)).
        rows: Labels from top to bottom.
        columns: Labels from left to right.
        title: Over the map.

    Returns:
        The image, for a colour bar.
    """
    image = axis.imshow(matrix, vmin=0, vmax=1, cmap='viridis', aspect='auto')
    axis.set_xticks(range(len(columns)), columns, rotation=90 if max(map(len, columns)) > 3 else 0)
    axis.set_yticks(range(len(rows)), rows)
    axis.set_title(title)
    if max(matrix.shape) <= MAX_NUMBERS:
        for (y, x), value in np.ndenumerate(matrix):
            colour = 'black' if value > 0.5 else 'white'
            axis.text(x, y, f'{value:.2f}', ha='center', va='center', color=colour, fontsize='small')
    return image
