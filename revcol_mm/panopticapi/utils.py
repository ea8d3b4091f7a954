"""Conversion between segment ids and the colours of a PNG: id = red + 256 * green + 65536 * blue."""

import numpy as np


def rgb2id(color: np.ndarray) -> np.ndarray:
    """Convert an image of colours (H, W, 3) to ids (H, W)."""
    red, green, blue = np.moveaxis(color.astype(np.int32), -1, 0)
    return red + 256 * green + 256**2 * blue


def id2rgb(id_map: np.ndarray) -> np.ndarray:
    """Convert ids (H, W) to an image of colours (H, W, 3), uint8."""
    return np.stack([id_map // base % 256 for base in (1, 256, 256**2)], -1).astype(np.uint8)
