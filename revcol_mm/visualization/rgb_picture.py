"""Convert images with any number of channels and any value range to 8-bit RGB."""

from typing import Any

import numpy as np


def rgb_picture(image: np.ndarray, is_bgr: bool = True) -> np.ndarray:
    """Convert an image to 8-bit RGB.

    Args:
        image: (H, W) or (H, W, C), of any numeric type. The first three channels are used, or the first one
            as grey if there are fewer than three. Values outside of 0 to 255 and fractions are scaled so
            that the 2nd to 98th percentile spans 0 to 255.
        is_bgr: Whether the first three channels are BGR, as OpenMMLab's loaders return them, or RGB.

    Returns:
        (H, W, 3), RGB, uint8.
    """
    image = np.atleast_3d(image)
    image = image[..., :3] if image.shape[-1] >= 3 else image[..., :1].repeat(3, axis=-1)
    if image.dtype != np.uint8:
        image = np.nan_to_num(image.astype(np.float64))
        if image.min() < 0 or image.max() > 255 or image.max() <= 1:
            low, high = np.percentile(image, (2, 98))
            image = 255 * np.clip((image - low) / (high - low or 1), 0, 1)
        image = image.astype(np.uint8)
    return np.ascontiguousarray(image[..., ::-1] if is_bgr else image)


def reads_bgr(loader: Any) -> bool:
    """Return whether an image-loading transform returns BGR; loaders of TIFF keep the channels of the file.

    True for None, which stands for a data set that does not read files.
    """
    return loader is None or getattr(loader, 'imdecode_backend', 'tifffile') != 'tifffile'
