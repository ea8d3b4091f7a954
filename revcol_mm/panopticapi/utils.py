"""Conversion between segment ids and the colours of a PNG: id = red + 256 * green + 65536 * blue."""

from collections.abc import Sequence

import numpy as np


def rgb2id(color: np.ndarray | Sequence[int]) -> np.ndarray | int:
    """Convert an image of colours (H, W, 3) to ids (H, W), or one colour to its id."""
    if isinstance(color, np.ndarray) and color.ndim == 3:
        red, green, blue = np.moveaxis(color.astype(np.int32), -1, 0)
    else:
        red, green, blue = map(int, color)
    return red + 256 * green + 256**2 * blue


def id2rgb(id_map: np.ndarray | int) -> np.ndarray | list[int]:
    """Convert ids (H, W) to an image of colours (H, W, 3), uint8, or one id to its colour."""
    color = [id_map // base % 256 for base in (1, 256, 256**2)]
    return np.stack(color, -1).astype(np.uint8) if isinstance(id_map, np.ndarray) else color
