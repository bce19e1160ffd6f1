"""Small pictures for jobs to begin with."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image


def write_pictures(folder: Path) -> list[Path]:
    """Write them, and return where they are."""
    from PIL import Image, ImageDraw

    folder.mkdir(parents=True, exist_ok=True)
    shapes = Image.new("RGB", (32, 32), "white")
    draw = ImageDraw.Draw(shapes)
    draw.ellipse((3, 3, 20, 20), fill="crimson")
    draw.rectangle((14, 14, 29, 28), fill="royalblue")
    left = Image.new("L", (32, 32), 0)
    left.paste(255, (0, 0, 16, 32))
    made = {"photo": _photo(), "shapes": shapes, "left-half": left}
    for name, picture in made.items():
        picture.save(folder / f"{name}.png")
    return [folder / f"{name}.png" for name in made]


def _photo() -> Image.Image:
    """Of 96 by 72 pixels: grounds, edges and a ball."""
    from PIL import Image, ImageDraw

    channels = [Image.linear_gradient("L").rotate(turn).resize((96, 72)) for turn in (0, 90, 180)]
    picture = Image.merge("RGB", channels)
    draw = ImageDraw.Draw(picture)
    draw.rectangle((8, 40, 60, 66), fill=(180, 120, 40))
    draw.ellipse((44, 10, 84, 50), fill=(200, 30, 30), outline=(40, 0, 0))
    return picture
