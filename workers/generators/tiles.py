"""Large pictures in overlapping tiles, each weighted so that the seams cancel out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Shades = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Tile:
    """A piece of a picture, in its pixels."""

    top: int
    left: int
    height: int
    width: int

    def of(self, picture: Shades) -> Shades:
        """This piece of (height, width, channels)."""
        return picture[self.top : self.top + self.height, self.left : self.left + self.width]


def tiles(height: int, width: int, *, side: int, overlap: int) -> list[Tile]:
    """Pieces that cover the picture: all of one size, unless the picture is smaller than that."""
    return [
        Tile(top, left, min(side, height), min(side, width))
        for top in _begins(height, side, overlap)
        for left in _begins(width, side, overlap)
    ]


def _begins(length: int, side: int, overlap: int) -> Iterator[int]:
    at = 0
    while at + side < length:
        yield at
        at += side - overlap
    yield max(0, length - side)


class Canvas:
    """The enlarged picture, as its pieces come in."""

    def __init__(self, height: int, width: int, *, scale: int, overlap: int) -> None:
        """Of a picture of this size."""
        self._scale = scale
        self._overlap = overlap
        self._sum = np.zeros((height * scale, width * scale, 3), dtype=np.float32)
        self._weight = np.zeros((height * scale, width * scale, 1), dtype=np.float32)

    def put(self, tile: Tile, piece: Shades) -> None:
        """Add an enlarged piece, (height, width, 3) between 0 and 1."""
        scale = self._scale
        weight = (
            _ramp(tile.height * scale, self._overlap * scale)[:, None, None]
            * (_ramp(tile.width * scale, self._overlap * scale)[None, :, None])
        )
        rows = slice(tile.top * scale, (tile.top + tile.height) * scale)
        columns = slice(tile.left * scale, (tile.left + tile.width) * scale)
        self._sum[rows, columns] += piece * weight
        self._weight[rows, columns] += weight

    def picture(self) -> npt.NDArray[np.uint8]:
        """What the pieces make together."""
        whole = self._sum / np.maximum(self._weight, 1e-8)
        return np.round(np.clip(whole, 0.0, 1.0) * 255).astype(np.uint8)


def _ramp(length: int, overlap: int) -> Shades:
    """From a little to 1 over the overlap, and back."""
    if not overlap:
        return np.ones(length, dtype=np.float32)
    inner = np.minimum(np.arange(1, length + 1), np.arange(length, 0, -1))
    return np.minimum(1.0, inner / overlap).astype(np.float32)
