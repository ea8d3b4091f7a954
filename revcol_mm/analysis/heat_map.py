"""Heat maps of matrices, annotated with their values."""

from typing import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.image import AxesImage

MAX_NUMBERS = 16  # rows or columns; in larger matrices the numbers would be too small to read


def heat_map(
    axis: Axes, matrix: np.ndarray, rows: Sequence[str], columns: Sequence[str], highest: float = 1.0
) -> AxesImage:
    """Draw a non-negative matrix, (len(rows), len(columns)), and return the image for a colour bar.

    ``rows`` are labels from top to bottom, ``columns`` from left to right. ``highest`` is the value of the
    brightest colour; nan is left blank.
    """
    image = axis.imshow(matrix, vmin=0, vmax=highest, cmap='viridis', aspect='auto')
    axis.set_xticks(range(len(columns)), columns, rotation=90 if max(map(len, columns)) > 3 else 0)
    axis.set_yticks(range(len(rows)), rows)
    if max(matrix.shape) <= MAX_NUMBERS:
        for (y, x), value in np.ma.ndenumerate(np.ma.masked_invalid(matrix)):
            colour = 'black' if value > highest / 2 else 'white'
            number = round(value, 2) + 0.0  # turns -0.0 into 0.0
            axis.text(x, y, f'{number:.2f}', ha='center', va='center', color=colour, fontsize='small')
    return image
