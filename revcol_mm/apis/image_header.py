"""How large an image is, by its header, before anything is decoded."""

from pathlib import Path
from threading import Lock

from PIL import Image

FORMATS = ('BMP', 'GIF', 'JPEG', 'PNG', 'PPM', 'TIFF', 'WEBP')  # that OpenCV decodes, too
_HEADERS = Lock()


class ImageError(ValueError):
    """An image, or none, that cannot be predicted on."""


def image_size(path: str | Path) -> tuple[int, int]:
    """Read an image's width and height, in pixels, from its header; of several frames or pages, of the first.

    Raises:
        ImageError: If it has the header of none of FORMATS.
    """
    with _HEADERS:
        # Pillow, too, has a limit, but does not tell the size of what is beyond it.
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            with Image.open(path, formats=FORMATS) as image:
                return image.size
        except Exception as error:  # Pillow raises all sorts
            raise ImageError('not an image, or a broken one') from error
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def check_image_size(path: str | Path, max_pixels: int) -> None:
    """Refuse an image that would take much memory, whose file may be small.

    Raises:
        ImageError: If it has more pixels, or see :func:`image_size`.
    """
    width, height = image_size(path)
    if width * height > max_pixels:
        raise ImageError(
            f'{width} x {height} are {width * height / 1e6:,.1f} million pixels, more than the '
            f'{max_pixels / 1e6:,.1f} million that are taken here: scale it down'
        )
