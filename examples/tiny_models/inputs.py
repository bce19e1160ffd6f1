"""Small files for jobs that read some."""

from __future__ import annotations

from pathlib import Path


def photo(folder: Path) -> Path:
    """A picture of 96 by 72 pixels: grounds, edges and a ball."""
    from PIL import Image, ImageDraw

    folder.mkdir(parents=True, exist_ok=True)
    channels = [Image.linear_gradient("L").rotate(turn).resize((96, 72)) for turn in (0, 90, 180)]
    picture = Image.merge("RGB", channels)
    draw = ImageDraw.Draw(picture)
    draw.rectangle((8, 40, 60, 66), fill=(180, 120, 40))
    draw.ellipse((44, 10, 84, 50), fill=(200, 30, 30), outline=(40, 0, 0))
    path = folder / "photo.png"
    picture.save(path)
    return path
