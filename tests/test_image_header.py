"""Sizes of images by their headers, and what is read of large, broken and strange ones."""

import struct
import zlib

import cv2
import numpy as np
import pytest
from mmcv.transforms import LoadImageFromFile
from PIL import Image

from revcol_mm.apis.image_header import FORMATS, ImageError, check_image_size, image_size
from revcol_mm.apis.task_inferencers import SegmentationInferencer

from .subprocesses import run


def bomb(path, width=30_000, height=30_000, lines=None):
    """A PNG of few bytes and many pixels, packed line by line; of fewer lines it is cut short."""
    line, packed = b'\0' + bytes(width), zlib.compressobj(9)
    data = b''.join([*(packed.compress(line) for _ in range(lines or height)), packed.flush()])
    with path.open('wb') as file:
        file.write(b'\x89PNG\r\n\x1a\n')
        header = struct.pack('>IIBBBBB', width, height, 8, 0, 0, 0, 0)
        for name, content in ((b'IHDR', header), (b'IDAT', data), (b'IEND', b'')):
            file.write(struct.pack('>I', len(content)) + name + content)
            file.write(struct.pack('>I', zlib.crc32(name + content)))
    return path


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
def test_the_size_is_that_of_the_decoded_image(kind, tmp_path):
    Image.new('RGB', (7, 5)).save(tmp_path / 'image', kind)
    assert image_size(tmp_path / 'image') == (7, 5)
    assert cv2.imdecode(np.fromfile(tmp_path / 'image', np.uint8), cv2.IMREAD_COLOR).shape == (5, 7, 3)


@pytest.mark.parametrize('kind', ['GIF', 'PNG', 'TIFF', 'WEBP'])
def test_of_several_frames_or_pages_the_first_counts_and_is_read(kind, tmp_path):
    sizes = [(7, 5)] * 3 if kind != 'TIFF' else [(7, 5), (900, 800), (3, 3)]
    first, *others = [Image.new('RGB', size, colour) for size, colour in zip(sizes, ('black', 'red', 'blue'))]
    first.save(tmp_path / 'image', kind, save_all=True, append_images=others)
    check_image_size(tmp_path / 'image', max_pixels=35)
    decoded = cv2.imdecode(np.fromfile(tmp_path / 'image', np.uint8), cv2.IMREAD_COLOR)
    assert decoded.shape == (5, 7, 3) and decoded.max() < 10


def test_the_limit_is_told_with_the_size(tmp_path):
    Image.new('L', (4000, 3001)).save(tmp_path / 'image.png')
    check_image_size(tmp_path / 'image.png', 4000 * 3001)
    with pytest.raises(ImageError, match='^4000 x 3001 are 12.0 million pixels, more than the 12.0 million'):
        check_image_size(tmp_path / 'image.png', 4000 * 3001 - 1)


def test_a_bomb_is_told_by_its_size_and_pillow_s_own_limit_stays(tmp_path):
    limit = Image.MAX_IMAGE_PIXELS
    with pytest.raises(ImageError, match='^200000 x 200000 are 40,000.0 million pixels'):
        check_image_size(bomb(tmp_path / 'bomb.png', 200_000, 200_000, lines=1), 2**24)
    with pytest.raises(ImageError, match='not an image'):
        check_image_size(tmp_path, 2**24)
    assert Image.MAX_IMAGE_PIXELS == limit


@pytest.mark.parametrize('kind, dtype', [('hdr', np.float32), ('pam', np.uint8)])
def test_what_opencv_decodes_and_the_limit_cannot_judge_is_no_image(kind, dtype, inferencer, tmp_path):
    path = tmp_path / f'image.{kind}'
    cv2.imwrite(str(path), np.zeros((5, 7, 3), dtype))
    assert inferencer.read(path).shape == (5, 7, 3)
    with pytest.raises(ImageError, match='not an image'):
        image_size(path)


@pytest.mark.parametrize(
    'content', [b'', b'\x89PNG\r\n\x1a\n', b'RIFF\0\0\0\0WEBP', b'BM', b'P6 1', b'II*\0', b'<svg/>']
)
def test_what_ends_within_its_header_is_no_image(content, tmp_path):
    (tmp_path / 'image').write_bytes(content)
    with pytest.raises(ImageError, match='^not an image, or a broken one$'):
        image_size(tmp_path / 'image')


@pytest.fixture
def inferencer():
    """As much of one as reads images."""
    inferencer = object.__new__(SegmentationInferencer)
    inferencer._load, inferencer._channels = LoadImageFromFile(), 3
    return inferencer


def test_large_images_that_users_name_are_read(inferencer, tmp_path):
    Image.new('L', (5000, 5000)).save(tmp_path / 'large.png')
    assert inferencer.read(tmp_path / 'large.png').shape == (5000, 5000, 3)


def test_beyond_opencv_s_limit_the_error_tells_the_size_and_what_raises_it(tmp_path):
    Image.new('L', (50, 30)).save(tmp_path / 'large.png')
    printed = run('-c', READ, tmp_path / 'large.png', OPENCV_IO_MAX_IMAGE_PIXELS='1000')
    assert 'ERROR 50 x 30 pixels are more than OpenCV reads; see OPENCV_IO_MAX_IMAGE_PIXELS' in printed


def test_what_does_not_fit_into_memory_is_told_so(inferencer, tmp_path):
    def load(results):
        raise MemoryError

    inferencer._load = load
    with pytest.raises(ImageError, match='^30000 x 30000 pixels do not fit into memory$'):
        inferencer.read(bomb(tmp_path / 'bomb.png', lines=1))
