"""An image of many pixels in a small file."""

import struct
import zlib


def write_image_bomb(path, width=30_000, height=30_000, lines=None):
    """Write a black PNG, compressed line by line; with fewer ``lines`` than its height it is truncated."""
    line, packed = b'\0' + bytes(width), zlib.compressobj(9)
    data = b''.join([*(packed.compress(line) for _ in range(lines or height)), packed.flush()])
    with path.open('wb') as file:
        file.write(b'\x89PNG\r\n\x1a\n')
        header = struct.pack('>IIBBBBB', width, height, 8, 0, 0, 0, 0)
        for name, content in ((b'IHDR', header), (b'IDAT', data), (b'IEND', b'')):
            file.write(struct.pack('>I', len(content)) + name + content)
            file.write(struct.pack('>I', zlib.crc32(name + content)))
    return path
