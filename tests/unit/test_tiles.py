"""Pieces of a picture: they cover it, and put together they show no seam."""

from __future__ import annotations

import numpy as np
import pytest

from workers.generators.tiles import Canvas, Tile, tiles, weights

SIZES = [(1, 1), (7, 200), (64, 64), (65, 64), (100, 171), (256, 130)]


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height * 1000 + width).integers(0, 256, (height, width, 3), dtype=np.uint8)


def enlarged(picture: np.ndarray, scale: int) -> np.ndarray:
    return picture.repeat(scale, 0).repeat(scale, 1)


@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize(("side", "overlap"), [(64, 0), (64, 16), (64, 32), (40, 20), (1000, 5)])
def test_pieces_cover_the_picture_and_are_of_one_size(height: int, width: int, side: int, overlap: int) -> None:
    pieces = tiles(height, width, side=side, overlap=overlap)
    times = np.zeros((height, width), dtype=int)
    for piece in pieces:
        times[piece.top : piece.top + piece.height, piece.left : piece.left + piece.width] += 1
    assert times.min() >= 1
    assert {(piece.height, piece.width) for piece in pieces} == {(min(side, height), min(side, width))}
    assert len(pieces) == len(set(pieces))


def test_pieces_begin_at_multiples_where_all_lengths_are_multiples() -> None:
    for piece in tiles(240, 136, side=64, overlap=24):
        assert [length % 8 for length in (piece.top, piece.left, piece.height, piece.width)] == [0, 0, 0, 0]


@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize(("side", "overlap"), [(64, 0), (64, 1), (64, 16), (64, 32), (40, 20)])
@pytest.mark.parametrize("scale", [1, 3])
def test_pieces_that_agree_make_the_picture(height: int, width: int, side: int, overlap: int, scale: int) -> None:
    picture = noise(height, width)
    canvas = Canvas(height, width, scale=scale, overlap=overlap)
    for piece in tiles(height, width, side=side, overlap=overlap):
        canvas.put(piece, enlarged(piece.of(picture), scale).astype(np.float32) / 255)
    assert (canvas.picture() == enlarged(picture, scale)).all()


def test_what_a_piece_says_at_its_rim_counts_nothing() -> None:
    """There it knows only half of its surroundings."""
    picture, overlap = noise(150, 180), 32
    canvas = Canvas(150, 180, scale=1, overlap=overlap)
    for piece in tiles(150, 180, side=64, overlap=overlap):
        shades = piece.of(picture).astype(np.float32) / 255
        rim = overlap // 4
        if piece.top > 0:
            shades[:rim] = 0
        if piece.left > 0:
            shades[:, :rim] = 1
        if piece.top + piece.height < 150:
            shades[-rim:] = 1
        if piece.left + piece.width < 180:
            shades[:, -rim:] = 0
        canvas.put(piece, shades)
    assert (canvas.picture() == picture).all()


def test_pieces_that_differ_pass_into_each_other() -> None:
    """Of two that are 64 shades apart no two neighbouring pixels are more than a few apart."""
    canvas = Canvas(64, 96, scale=1, overlap=32)
    first, second = tiles(64, 96, side=64, overlap=32)
    canvas.put(first, np.full((64, 64, 3), 64 / 255, dtype=np.float32))
    canvas.put(second, np.full((64, 64, 3), 128 / 255, dtype=np.float32))
    row = canvas.picture()[30, :, 0].astype(int)
    assert (row[0], row[-1]) == (64, 128)
    assert np.abs(np.diff(row)).max() <= 5


def test_shades_beyond_white_and_black_are_cut_off() -> None:
    canvas = Canvas(4, 4, scale=1, overlap=0)
    canvas.put(Tile(0, 0, 4, 4), np.full((4, 4, 3), 1.7, dtype=np.float32))
    assert (canvas.picture() == 255).all()


@pytest.mark.parametrize("overlap", [1, 2, 3, 4, 9, 16, 33])
def test_weights_of_two_neighbours_are_one_together(overlap: int) -> None:
    one, other = weights(0, 100, 200 - overlap, overlap), weights(100 - overlap, 100, 200 - overlap, overlap)
    assert np.allclose(one[-overlap:] + other[:overlap], 1)
    assert (one[:-overlap] == 1).all()
    assert (other[overlap:] == 1).all()
