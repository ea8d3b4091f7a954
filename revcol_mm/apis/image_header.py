"""The size of an image file, read from its header without decoding pixels."""

from pathlib import Path
from threading import Lock

from PIL import Image

FORMATS = ('BMP', 'GIF', 'JPEG', 'PNG', 'PPM', 'TIFF', 'WEBP')  # formats that OpenCV decodes, too
_PILLOW_LIMIT = Lock()


class ImageError(ValueError):
    """An image cannot be read or predicted on."""


def header_size(path: str | Path) -> tuple[int, int]:
    """Return width and height, in pixels, as stored in an image's header; of its first frame or page.

    Raises:
        ImageError: If the file does not begin with a valid header of one of FORMATS.
    """
    with _PILLOW_LIMIT:  # which is global
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None  # its error would not tell the size
        try:
            with Image.open(path, formats=FORMATS) as image:
                return image.size
        except Exception as error:  # Pillow raises many kinds
            raise ImageError('not an image, or a broken one') from error
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def check_image_size(path: str | Path, max_pixels: int) -> None:
    """Check that an image, whose file may be small, has no more than ``max_pixels`` pixels.

    Raises:
        ImageError: If it has more, or see :func:`header_size`.
    """
    width, height = header_size(path)
    if width * height > max_pixels:
        raise ImageError(
            f'{width} x {height} are {width * height / 1e6:,.1f} million pixels, more than the limit of '
            f'{max_pixels / 1e6:,.1f} million: scale the image down'
        )
