"""Large pictures in overlapping tiles, each weighted so that the seams cancel out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

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

    def of(self, picture: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """This piece of (height, width, channels)."""
        return picture[self.top : self.top + self.height, self.left : self.left + self.width]


def tiles(height: int, width: int, *, side: int, overlap: int) -> list[Tile]:
    """Pieces that cover the picture, row by row: all of one size, unless the picture is smaller than that.

    `overlap` is at most half of `side`. Where `height`, `width`, `side` and `overlap` are multiples of a number, every
    piece begins and ends at one.
    """
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


def weights(begin: int, length: int, whole: int, overlap: int) -> Shades:
    """How much each line of a piece counts, from `begin` of `whole` lines: less towards a neighbour, all at an edge.

    The outer quarter of an overlap counts nothing: there a piece knows least of what is around it.
    """
    margin = overlap // 4
    ramp = max(1, overlap - 2 * margin)
    inner = np.arange(length, dtype=np.float32) + 0.5 - margin
    made = np.ones(length, dtype=np.float32)
    if overlap and begin > 0:
        made = np.minimum(made, np.clip(inner / ramp, 0, 1))
    if overlap and begin + length < whole:
        made = np.minimum(made, np.clip(inner / ramp, 0, 1)[::-1])
    return made


class Canvas:
    """An enlarged picture, as its pieces come in; only a band as high as one of them is kept in full precision."""

    def __init__(self, height: int, width: int, *, scale: int, overlap: int) -> None:
        """Of a picture of this size, whose pieces overlap by so many of its pixels."""
        self._height, self._width = height * scale, width * scale
        self._scale = scale
        self._overlap = overlap * scale
        self._done = np.zeros((self._height, self._width, 3), dtype=np.uint8)
        #: the row at which the band begins
        self._top = 0
        self._sum = np.zeros((0, self._width, 3), dtype=np.float32)
        self._weight = np.zeros((0, self._width, 1), dtype=np.float32)

    def put(self, tile: Tile, piece: Shades) -> None:
        """Add an enlarged piece, (height, width, 3) between 0 and 1. Pieces come in the order of `tiles`."""
        top, left = tile.top * self._scale, tile.left * self._scale
        height, width = piece.shape[:2]
        self._advance(top, height)
        rows = weights(top, height, self._height, self._overlap)
        columns = weights(left, width, self._width, self._overlap)
        weight = (rows[:, None] * columns[None, :])[:, :, None]
        place = slice(top - self._top, top - self._top + height), slice(left, left + width)
        self._sum[place] += piece * weight
        self._weight[place] += weight

    def picture(self) -> npt.NDArray[np.uint8]:
        """What the pieces make together, once all of them are there."""
        self._advance(self._height, 0)
        return self._done

    def _advance(self, top: int, height: int) -> None:
        """Finish the rows above `top`, to which no piece will add any more, and make the band so high."""
        ready = min(top - self._top, len(self._sum))
        if ready > 0:
            whole = self._sum[:ready] / np.maximum(self._weight[:ready], 1e-8)
            np.clip(whole, 0.0, 1.0, out=whole)
            whole *= 255
            self._done[self._top : self._top + ready] = np.round(whole)
        if ready > 0 or height > len(self._sum):
            band = max(height, len(self._sum) - ready)
            kept, kept_weight = self._sum[ready:], self._weight[ready:]
            self._sum = np.zeros((band, self._width, 3), dtype=np.float32)
            self._weight = np.zeros((band, self._width, 1), dtype=np.float32)
            self._sum[: len(kept)], self._weight[: len(kept)] = kept, kept_weight
            self._top = top
