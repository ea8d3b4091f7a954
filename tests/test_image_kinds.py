"""Images of unusual formats and names are read correctly."""

import numpy as np
import pytest
from mmengine.registry import TRANSFORMS, DefaultScope
from PIL import Image

RED = (200, 40, 20)
GREY = (85,) * 3  # RED in grey


def save_image(folder, kind):
    """Save an image of 8 x 6 pixels, red in its upper half and black below; return its path."""
    image = Image.new('RGB', (8, 6))
    image.paste(RED, (0, 0, 8, 3))
    path, options = folder / 'a.png', {}
    if kind == '16 bit':
        image = Image.fromarray(np.asarray(image.convert('L')).astype(np.uint16) * 257)
    elif kind == 'grey':
        image = image.convert('L')
    elif kind == 'RGBA':
        image.putalpha(0)
    elif kind == 'palette':
        image = image.convert('P', palette=Image.Palette.ADAPTIVE)
    elif kind == 'CMYK':
        image, path, options = image.convert('CMYK'), folder / 'a.jpg', dict(quality=100)
    elif kind == 'EXIF-rotated':
        exif = Image.Exif()
        exif[0x0112] = 8  # viewers rotate the image by 90 degrees to the left
        image, path = image.transpose(Image.Transpose.ROTATE_270), folder / 'a.jpg'
        options = dict(exif=exif, quality=100, subsampling=0)
    elif kind == 'unicode name':
        path = folder / 'Größe 雪 %20 [1].png'
    image.save(path, **options)
    return path


def read(path):
    with DefaultScope.overwrite_default_scope('mmseg'):
        return TRANSFORMS.build(dict(type='LoadImageFromFile'))(dict(img_path=str(path)))['img']


@pytest.mark.parametrize(
    'kind', ['16 bit', 'grey', 'RGBA', 'palette', 'CMYK', 'EXIF-rotated', 'unicode name']
)
def test_unusual_image_is_read_as_8_bit_bgr(kind, tmp_path):
    image = read(save_image(tmp_path, kind))
    colour = GREY if kind in ('16 bit', 'grey') else RED
    assert image.shape == (6, 8, 3) and image.dtype == np.uint8
    assert np.abs(image[0, 0, ::-1].astype(int) - colour).max() <= 8
    assert image[5].max() <= 30
