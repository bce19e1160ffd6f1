"""Small pictures for jobs to begin with."""

from __future__ import annotations

from pathlib import Path


def write_pictures(folder: Path) -> list[Path]:
    """Write them, and return where they are."""
    from PIL import Image, ImageDraw

    folder.mkdir(parents=True, exist_ok=True)
    picture = Image.new("RGB", (32, 32), "white")
    draw = ImageDraw.Draw(picture)
    draw.ellipse((3, 3, 20, 20), fill="crimson")
    draw.rectangle((14, 14, 29, 28), fill="royalblue")
    path = folder / "shapes.png"
    picture.save(path)
    return [path]
