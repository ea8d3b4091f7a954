"""Cutting large images into overlapping tiles, so that the network's memory does not grow with the image."""

from dataclasses import dataclass
from typing import Iterator, NamedTuple


class Span(NamedTuple):
    """A tile along one side of the image, in pixels.

    Args:
        start, stop: The tile, from ``start`` to before ``stop``.
        first, last: The part of it for which this tile's label is used, from ``first`` to before ``last``. It
            ends in the middle of each overlap.
    """

    start: int
    stop: int
    first: int
    last: int


class Tile(NamedTuple):
    """A tile of an image."""

    rows: Span
    columns: Span

    @property
    def box(self) -> tuple[int, int, int, int]:
        """x1, y1, x2, y2."""
        return self.columns.start, self.rows.start, self.columns.stop, self.rows.stop


@dataclass(frozen=True)
class Tiling:
    """A way to cut images into tiles.

    Args:
        size: Height and width of a tile, in pixels. A side of the image that is shorter is not cut.
        overlap: Smallest number of pixels that neighbouring tiles share. Larger objects may be found in
            parts, which are merged if they agree in the overlap.

    Raises:
        ValueError: If the size is not positive, or the overlap is more than half of it.
    """

    size: int
    overlap: int

    def __post_init__(self) -> None:
        if self.size < 1 or not 0 <= self.overlap <= self.size // 2:
            raise ValueError(
                'the tile size must be positive, and the overlap between 0 and half of it: '
                f'got {self.size} and {self.overlap}'
            )

    def tiles(self, height: int, width: int) -> Iterator[Tile]:
        """Yield the tiles of an image, row by row."""
        columns = self._spans(width)
        for rows in self._spans(height):
            for span in columns:
                yield Tile(rows, span)

    def _spans(self, length: int) -> list[Span]:
        last = max(length - self.size, 0)
        starts = [*range(0, last, self.size - self.overlap), last]
        stops = [min(start + self.size, length) for start in starts]
        cuts = [(stop + start) // 2 for stop, start in zip(stops, starts[1:])]
        return list(map(Span, starts, stops, [0, *cuts], [*cuts, length]))
