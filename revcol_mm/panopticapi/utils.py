"""Ids of segments as colours of a PNG: red + 256 green + 65536 blue."""

from collections.abc import Sequence

import numpy as np


def rgb2id(color: np.ndarray | Sequence[int]) -> np.ndarray | int:
    """Ids, (H, W), of colours, (H, W, 3); of the colour of one segment, its id."""
    if isinstance(color, np.ndarray) and color.ndim == 3:
        red, green, blue = np.moveaxis(color.astype(np.int32), -1, 0)
    else:
        red, green, blue = map(int, color)
    return red + 256 * green + 256**2 * blue


def id2rgb(id_map: np.ndarray | int) -> np.ndarray | list[int]:
    """Colours, (H, W, 3) of uint8, of ids, (H, W); of one id, its colour."""
    if isinstance(id_map, np.ndarray):
        return np.stack([id_map // base % 256 for base in (1, 256, 256**2)], -1).astype(np.uint8)
    return [id_map // base % 256 for base in (1, 256, 256**2)]
