"""Networks of convolutions that take a large picture in tiles, in each of their passes.

The tiles of a diffusion model agree on every step, because what they predict is blended before the next one begins
("Mixture of Diffusers", Jiménez 2023): two that were denoised each by itself would show different things.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from typing import Any

import torch

from workers.generators.tiles import Tile, tiles, weights


@contextmanager
def in_tiles(network: Any, *, side: int, overlap: int, say: Callable[[], object]) -> Iterator[None]:
    """Within, the network takes its first input, (n, channels, height, width), in tiles of at most this side.

    `say` is called after each of them. Sides and begins of tiles have to fit what the network divides by.
    """
    own = vars(network).get("forward")
    whole = network.forward

    def forward(sample: torch.Tensor, *args: Any, **options: Any) -> Any:
        pieces = tiles(*sample.shape[-2:], side=side, overlap=overlap)
        if len(pieces) == 1:
            made = whole(sample, *args, **options)
            say()
            return made
        blend: _Blend | None = None
        made = None
        for tile in pieces:
            made = whole(_part(sample, tile), *args, **options)
            piece = _tensor(made)
            if blend is None:
                blend = _Blend(sample, piece, Fraction(piece.shape[-1], tile.width), overlap)
            blend.put(tile, piece)
            say()
        assert blend is not None  # noqa: S101 - there is at least one tile
        return _like(made, blend.picture())

    network.forward = forward
    try:
        yield
    finally:
        if own is None:
            del network.forward
        else:
            network.forward = own


class _Blend:
    """What the tiles make together."""

    def __init__(self, sample: torch.Tensor, piece: torch.Tensor, scale: Fraction, overlap: int) -> None:
        self._scale = scale
        self._height, self._width = (int(length * scale) for length in sample.shape[-2:])
        self._overlap = int(overlap * scale)
        self._dtype = piece.dtype
        shape = (*piece.shape[:-2], self._height, self._width)
        self._sum = torch.zeros(shape, dtype=torch.float32, device=piece.device)
        self._weight = torch.zeros(shape[-2:], dtype=torch.float32, device=piece.device)

    def put(self, tile: Tile, piece: torch.Tensor) -> None:
        top, left = int(tile.top * self._scale), int(tile.left * self._scale)
        height, width = piece.shape[-2:]
        rows = torch.from_numpy(weights(top, height, self._height, self._overlap)).to(piece.device)
        columns = torch.from_numpy(weights(left, width, self._width, self._overlap)).to(piece.device)
        weight = rows[:, None] * columns[None, :]
        self._sum[..., top : top + height, left : left + width] += piece.float() * weight
        self._weight[top : top + height, left : left + width] += weight

    def picture(self) -> torch.Tensor:
        return (self._sum / self._weight.clamp_min(1e-8)).to(self._dtype)


def _part(sample: torch.Tensor, tile: Tile) -> torch.Tensor:
    return sample[..., tile.top : tile.top + tile.height, tile.left : tile.left + tile.width]


def _tensor(made: Any) -> torch.Tensor:
    """What a network gives back: a tensor, a tuple that begins with one, or an output with a `sample`."""
    found: torch.Tensor = made if torch.is_tensor(made) else made[0]
    return found


def _like(made: Any, tensor: torch.Tensor) -> Any:
    if torch.is_tensor(made):
        return tensor
    return (tensor,) if isinstance(made, tuple) else type(made)(sample=tensor)
