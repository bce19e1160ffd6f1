"""Pictures to look at and to enlarge: of odd sizes, turned by their EXIF, of sixteen bits, large enough for tiles."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image


def scene(width: int, height: int, seed: int = 0) -> Image.Image:
    """Something with soft grounds, edges and grain, in three colours."""
    rng = np.random.default_rng(seed)
    down, right = np.mgrid[0:height, 0:width]
    layers = [
        np.sin(right / (5 + seed % 3) + phase) + np.cos(down / (7 + seed % 4) - phase) for phase in (0.0, 1.0, 2.0)
    ]
    shades = np.stack(layers, axis=-1) * 45 + 128 + rng.normal(0, 12, (height, width, 3))
    shades[height // 4 : height // 2, width // 4 : width // 2] = rng.integers(0, 255, 3)
    return Image.fromarray(shades.clip(0, 255).astype(np.uint8))


def views() -> dict[str, str]:
    """Paths of files that are made once per process, by what is special about them."""
    folder = Path(tempfile.mkdtemp(prefix="aigc-views-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6  # to be turned by a quarter
    for name, picture, options in (
        ("odd", scene(37, 23), {}),
        ("odd too", scene(37, 23, 1), {}),
        ("wide", scene(90, 50, 2), {}),
        ("large", scene(150, 131, 3), {}),
        ("turned", scene(40, 24, 4), {"exif": exif}),
        ("sixteen", Image.fromarray((np.arange(24 * 40, dtype=np.uint32) * 68).astype(np.uint16).reshape(24, 40)), {}),
        ("dot", scene(1, 1, 5), {}),
    ):
        picture.save(folder / f"{name}.png", **options)
    return {path.stem: str(path) for path in folder.iterdir()}
