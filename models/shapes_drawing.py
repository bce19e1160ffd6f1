"""Drawings of one coloured figure on a coloured ground, and captions for them.

This is the whole world that ``starter/shapes`` knows: :data:`SHAPES` x :data:`COLOURS` x other
:data:`COLOURS`, three sizes. Some triples (:func:`held_out`) are never drawn for training, so that the check
can ask for combinations the model has not seen.
"""

from __future__ import annotations

import functools
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageDraw, ImageFilter

Point = tuple[float, float]
Size = Literal["small", "normal", "big"]

#: sRGB, 0-255, of every colour word before light and shade.
COLOURS: Final[dict[str, tuple[int, int, int]]] = {
    "red": (222, 45, 48),
    "orange": (246, 140, 28),
    "yellow": (252, 214, 58),
    "green": (48, 168, 84),
    "blue": (45, 105, 222),
    "purple": (132, 66, 182),
    "pink": (246, 142, 186),
    "white": (244, 244, 244),
    "black": (30, 30, 34),
}

#: Radius of the circle around a figure, as a share of the picture's shorter side: (least, most).
SIZES: Final[dict[Size, tuple[float, float]]] = {
    "small": (0.23, 0.24),
    "normal": (0.31, 0.32),
    "big": (0.4, 0.41),
}

#: Width and height of training pictures in pixels, with their share.
FORMATS: Final[dict[tuple[int, int], float]] = {(128, 128): 0.84, (192, 128): 0.08, (128, 192): 0.08}

_SUPERSAMPLE: Final = 4


def _regular(corners: int) -> list[Point]:
    """Corners of a regular polygon in the unit circle, the first one on top."""
    return [(math.sin(2 * math.pi * k / corners), -math.cos(2 * math.pi * k / corners)) for k in range(corners)]


def _star() -> list[Point]:
    points = _regular(10)
    return [(x, y) if k % 2 == 0 else (0.46 * x, 0.46 * y) for k, (x, y) in enumerate(points)]


def _heart() -> list[Point]:
    points: list[Point] = []
    for k in range(72):
        t = 2 * math.pi * k / 72
        x = 16 * math.sin(t) ** 3
        y = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
        points.append((x / 17, -(y + 2.5) / 17))
    return points


def _cross() -> list[Point]:
    a, b = 0.34, 0.94
    return [
        (-a, -b),
        (a, -b),
        (a, -a),
        (b, -a),
        (b, a),
        (a, a),
        (a, b),
        (-a, b),
        (-a, a),
        (-b, a),
        (-b, -a),
        (-a, -a),
    ]


#: Outline of every shape in a unit circle around (0, 0), y downwards.
SHAPES: Final[dict[str, list[Point]]] = {
    "circle": [(0.92 * x, 0.92 * y) for x, y in _regular(72)],
    "square": [(-0.8, -0.8), (0.8, -0.8), (0.8, 0.8), (-0.8, 0.8)],
    "triangle": [(x * 1.08, y * 1.08 + 0.2) for x, y in _regular(3)],
    "star": [(x * 1.08, y * 1.08 + 0.05) for x, y in _star()],
    "heart": _heart(),
    "diamond": [(0.0, -1.0), (0.7, 0.0), (0.0, 1.0), (-0.7, 0.0)],
    "ring": [(0.95 * x, 0.95 * y) for x, y in _regular(72)],
    "cross": _cross(),
}

#: Radius of a ring's hole, as a share of the unit circle.
RING_HOLE: Final = 0.52

#: Largest turn in degrees to either side: figures stand upright, which leaves less to be learned.
_TURN: Final = 2.0

SHAPE_WORDS: Final[dict[str, tuple[str, ...]]] = {
    "circle": ("circle", "circle", "circle", "disc", "dot"),
    "ring": ("ring", "ring", "ring", "donut"),
    "cross": ("cross", "cross", "cross", "plus sign"),
    "diamond": ("diamond", "diamond", "diamond", "rhombus"),
}
SIZE_WORDS: Final[dict[Size, tuple[str, ...]]] = {
    "small": ("small", "small", "little", "tiny"),
    "normal": ("", "", "", "", "", "medium"),
    "big": ("big", "big", "large", "huge"),
}


@dataclass(frozen=True, slots=True)
class Scene:
    """What a picture shows, in the words of the caption."""

    shape: str
    #: Colour of the figure.
    figure: str
    #: Colour of the ground; never the figure's.
    ground: str
    size: Size = "normal"


@functools.cache
def held_out() -> frozenset[tuple[str, str, str]]:
    """The 72 of 576 (shape, figure, ground) triples never trained on: each shape once in every colour."""
    names = list(COLOURS)
    triples = set()
    for s, shape in enumerate(SHAPES):
        for f, figure in enumerate(names):
            ground = names[(f + 1 + (3 * s + 5 * f) % (len(names) - 1)) % len(names)]
            triples.add((shape, figure, ground))
    return frozenset(triples)


def random_scene(rng: random.Random, *, held: bool = False) -> Scene:
    """A scene to train on, or with ``held`` one of those that are kept for the check."""
    while True:
        shape, (figure, ground) = rng.choice(list(SHAPES)), rng.sample(list(COLOURS), 2)
        if ((shape, figure, ground) in held_out()) == held:
            size: Size = rng.choices(("small", "normal", "big"), (1, 3, 1))[0]  # type: ignore[assignment]
            return Scene(shape, figure, ground, size)


def outline(shape: str, centre: Point, radius: float, degrees: float) -> list[Point]:
    """Corners in pixels: turned clockwise by ``degrees``, scaled to ``radius``, moved to ``centre``."""
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return [(centre[0] + radius * (c * x - s * y), centre[1] + radius * (s * x + c * y)) for x, y in SHAPES[shape]]


def mask(shape: str, size: tuple[int, int], centre: Point, radius: float, degrees: float) -> Image.Image:
    """How much of each pixel ``shape`` covers: 8-bit grey of ``size`` (width, height), antialiased."""
    k = _SUPERSAMPLE
    big = Image.new("L", (size[0] * k, size[1] * k), 0)
    pen = ImageDraw.Draw(big)
    pen.polygon([(x * k, y * k) for x, y in outline(shape, centre, radius, degrees)], fill=255)
    if shape == "ring":
        hole = radius * RING_HOLE
        pen.ellipse(
            [(centre[0] - hole) * k, (centre[1] - hole) * k, (centre[0] + hole) * k, (centre[1] + hole) * k],
            fill=0,
        )
    return big.reduce(k)


def draw(scene: Scene, rng: random.Random, size: tuple[int, int] = (128, 128)) -> Image.Image:
    """An RGB picture of ``scene``, ``size`` being (width, height) in pixels.

    ``rng`` decides place, turn, exact radius and tint. The figure lies inside the picture, lit from the upper
    left, with a soft shadow on a ground that is lighter in the middle.
    """
    width, height = size
    side = min(size)
    radius = side * rng.uniform(*SIZES[scene.size])
    slack_x, slack_y = width / 2 - 1.08 * radius, height / 2 - 1.08 * radius
    centre = (
        width / 2 + max(-slack_x, min(slack_x, rng.gauss(0, 0.012 * width))),
        height / 2 + max(-slack_y, min(slack_y, rng.gauss(0, 0.012 * height))),
    )
    degrees = rng.uniform(-_TURN, _TURN)
    figure = mask(scene.shape, size, centre, radius, degrees)

    blur = 0.028 * side
    shadow = ImageChops.offset(figure, round(0.022 * side), round(0.034 * side)).filter(ImageFilter.GaussianBlur(blur))

    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    ground_light = 1.03 - 0.16 * (((x - width / 2) / width) ** 2 + ((y - 0.4 * height) / height) ** 2) / 0.5
    slope = ((x - centre[0]) * 0.6 + (y - centre[1]) * 0.8) / radius
    figure_light = 1.0 - 0.11 * np.clip(slope, -1.2, 1.2)

    ground = _tint(scene.ground, rng) * ground_light[..., None]
    body = _tint(scene.figure, rng) * figure_light[..., None]
    shade = np.asarray(shadow, np.float32)[..., None] / 255 * 0.3
    cover = np.asarray(figure, np.float32)[..., None] / 255
    pixels = ground * (1 - shade) * (1 - cover) + body * cover
    return Image.fromarray(np.clip(pixels + 0.5, 0, 255).astype(np.uint8), "RGB")


def _tint(colour: str, rng: random.Random) -> NDArray[np.float32]:
    """The colour with a slightly different lightness each time; (3,) float, 0-255."""
    return np.asarray(COLOURS[colour], np.float32) * rng.uniform(0.99, 1.01)


def _an(words: str) -> str:
    return f"{'an' if words[:1] in 'aeiou' else 'a'} {words}"


def _join(*words: str) -> str:
    return " ".join(word for word in words if word)


#: How a caption is put; frequent ones stand twice. ``figure`` is size, colour, shape; ``a_``: with article.
_WORDINGS: Final[Sequence[str]] = (
    "{a_figure} on {ground}",
    "{a_figure} on {ground}",
    "{a_figure} on {a_ground} background",
    "{a_figure} on {a_ground} background",
    "{figure}, {ground} background",
    "{figure} on {ground}",
    "{a_figure} against {a_ground} background",
    "{a_figure} in front of {a_ground} background",
    "{a_figure} on {a_ground} ground",
    "{a_bare} in {colour} on {ground}",
    "{a_ground} background with {a_figure}",
    "{a_figure} with {a_ground} background",
)
_OPENINGS: Final[Sequence[str]] = (
    "",
    "",
    "",
    "",
    "",
    "a picture of ",
    "an image of ",
    "a drawing of ",
    "a photo of ",
    "please draw ",
)
_ASIDES: Final[Sequence[str]] = (
    "minimal",
    "high quality",
    "simple",
    "flat design",
    "soft light",
    "an icon",
    "nice",
    "poster",
)


def caption(scene: Scene, rng: random.Random, *, plain: bool = False) -> str:
    """Words for ``scene`` in one of many wordings, lower case.

    Unless ``plain``, one in twelve captions leaves out the ground or both colours (the picture then decides),
    and some carry an aside that means nothing here, so that the model learns to pass over unknown words.
    """
    size = rng.choice(SIZE_WORDS[scene.size])
    shape = rng.choice(SHAPE_WORDS.get(scene.shape, (scene.shape,)))
    figure = _join(size, scene.figure, shape)
    dice = 1.0 if plain else rng.random()
    if dice < 0.06:
        text = rng.choice((_an(figure), figure))
    elif dice < 0.085:
        text = _an(_join(size, shape))
    else:
        text = rng.choice(_WORDINGS).format(
            figure=figure,
            a_figure=_an(figure),
            a_bare=_an(_join(size, shape)),
            colour=scene.figure,
            ground=scene.ground,
            a_ground=_an(scene.ground),
        )
    if text.startswith(("a ", "an ")):
        text = rng.choice(_OPENINGS) + text
    if not plain and rng.random() < 0.06:
        aside = (
            rng.choice(_ASIDES)
            if rng.random() < 0.5
            else "".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(3, 7)))
        )
        text = f"{text}, {aside}" if rng.random() < 0.7 else f"{aside}, {text}"
    return text
