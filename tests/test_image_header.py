"""Sizes of images from their headers, and reading large, broken and unusual images."""

import cv2
import numpy as np
import pytest
from mmcv.transforms import LoadImageFromFile
from PIL import Image

from revcol_mm.apis.image_header import FORMATS, ImageError, check_image_size, header_size
from revcol_mm.apis.task_inferencers import SegmentationInferencer

from .image_bomb import write_image_bomb
from .subprocesses import run

READ = """
import sys
from mmcv.transforms import LoadImageFromFile
from revcol_mm.apis.image_header import ImageError
from revcol_mm.apis.task_inferencers import SegmentationInferencer
inferencer = object.__new__(SegmentationInferencer)
inferencer._load = LoadImageFromFile()
try:
    print('READ', inferencer.read(sys.argv[1]).shape)
except ImageError as error:
    print('ERROR', error)
"""


@pytest.mark.parametrize('kind', FORMATS)
def test_size_equals_that_of_the_decoded_image(kind, tmp_path):
    Image.new('RGB', (7, 5)).save(tmp_path / 'image', kind)
    assert header_size(tmp_path / 'image') == (7, 5)
    assert cv2.imdecode(np.fromfile(tmp_path / 'image', np.uint8), cv2.IMREAD_COLOR).shape == (5, 7, 3)


@pytest.mark.parametrize('kind', ['GIF', 'PNG', 'TIFF', 'WEBP'])
def test_first_of_several_frames_or_pages_is_measured_and_read(kind, tmp_path):
    sizes = [(7, 5)] * 3 if kind != 'TIFF' else [(7, 5), (900, 800), (3, 3)]
    first, *others = [Image.new('RGB', size, colour) for size, colour in zip(sizes, ('black', 'red', 'blue'))]
    first.save(tmp_path / 'image', kind, save_all=True, append_images=others)
    check_image_size(tmp_path / 'image', max_pixels=35)
    decoded = cv2.imdecode(np.fromfile(tmp_path / 'image', np.uint8), cv2.IMREAD_COLOR)
    assert decoded.shape == (5, 7, 3) and decoded.max() < 10


def test_limit_is_inclusive_and_named_in_the_error(tmp_path):
    Image.new('L', (4000, 3001)).save(tmp_path / 'image.png')
    check_image_size(tmp_path / 'image.png', 4000 * 3001)
    with pytest.raises(
        ImageError, match='^4000 x 3001 are 12.0 million pixels, more than the limit of 12.0 million'
    ):
        check_image_size(tmp_path / 'image.png', 4000 * 3001 - 1)


def test_image_bomb_is_refused_and_pillow_s_limit_is_restored(tmp_path):
    limit = Image.MAX_IMAGE_PIXELS
    with pytest.raises(ImageError, match='^200000 x 200000 are 40,000.0 million pixels'):
        check_image_size(write_image_bomb(tmp_path / 'bomb.png', 200_000, 200_000, lines=1), 2**24)
    with pytest.raises(ImageError, match='not an image'):
        check_image_size(tmp_path, 2**24)
    assert Image.MAX_IMAGE_PIXELS == limit


@pytest.mark.parametrize('kind, dtype', [('hdr', np.float32), ('pam', np.uint8)])
def test_format_without_known_header_has_no_size(kind, dtype, inferencer, tmp_path):
    path = tmp_path / f'image.{kind}'
    cv2.imwrite(str(path), np.zeros((5, 7, 3), dtype))
    assert inferencer.read(path).shape == (5, 7, 3)
    with pytest.raises(ImageError, match='not an image'):
        header_size(path)


@pytest.mark.parametrize(
    'content', [b'', b'\x89PNG\r\n\x1a\n', b'RIFF\0\0\0\0WEBP', b'BM', b'P6 1', b'II*\0', b'<svg/>']
)
def test_truncated_header_is_an_error(content, tmp_path):
    (tmp_path / 'image').write_bytes(content)
    with pytest.raises(ImageError, match='^not an image, or a broken one$'):
        header_size(tmp_path / 'image')


@pytest.fixture
def inferencer():
    """An inferencer that can only read images."""
    inferencer = object.__new__(SegmentationInferencer)
    inferencer._load, inferencer._channels = LoadImageFromFile(), 3
    return inferencer


def test_large_image_is_read(inferencer, tmp_path):
    Image.new('L', (5000, 5000)).save(tmp_path / 'large.png')
    assert inferencer.read(tmp_path / 'large.png').shape == (5000, 5000, 3)


def test_image_above_opencv_s_limit_is_an_error(tmp_path):
    Image.new('L', (50, 30)).save(tmp_path / 'large.png')
    printed = run('-c', READ, tmp_path / 'large.png', OPENCV_IO_MAX_IMAGE_PIXELS='1000')
    assert (
        'ERROR 50 x 30 pixels are more than OpenCV reads; raise its limit, OPENCV_IO_MAX_IMAGE_PIXELS'
        in printed
    )


def test_image_that_does_not_fit_into_memory_is_an_error(inferencer, tmp_path):
    def load(results):
        raise MemoryError

    inferencer._load = load
    with pytest.raises(ImageError, match='^30000 x 30000 pixels do not fit into memory$'):
        inferencer.read(write_image_bomb(tmp_path / 'bomb.png', lines=1))
