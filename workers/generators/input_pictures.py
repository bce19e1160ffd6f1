"""Pictures that jobs bring along, as models take them: upright, opaque, in three colours, of the size wanted."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

from workers.inputs.looks import IMAGE_FORMATS

#: what lies behind a picture that lets light through
GROUND = (255, 255, 255)


def open_picture(path: Path) -> Image.Image:
    """The first frame, turned as the camera was held, on white where it is transparent, as RGB."""
    with Image.open(path, formats=IMAGE_FORMATS) as image:
        image.seek(0)
        upright = ImageOps.exif_transpose(image)
        if upright.mode.startswith("I;16") or upright.mode in ("I", "F"):
            # Sixteen bits: the upper eight of them. Pillow would cut everything above 255 off.
            upright = upright.convert("I").point(lambda shade: shade / 257).convert("L")
        if upright.mode in ("RGBA", "LA", "PA") or "transparency" in upright.info:
            layer = upright.convert("RGBA")
            ground = Image.new("RGBA", layer.size, (*GROUND, 255))
            return Image.alpha_composite(ground, layer).convert("RGB")
        return upright.convert("RGB")


def open_mask(path: Path) -> Image.Image:
    """A mask: white is painted anew, black stays."""
    return open_picture(path).convert("L")


def size_for(picture: Image.Image, *, multiple: int, most_pixels: int) -> tuple[int, int]:
    """The picture's own size in sides that the model takes, smaller where it has more pixels than that."""
    width, height = picture.size
    scale = min(1.0, math.sqrt(most_pixels / (width * height)))
    wide, high = (max(multiple, round(side * scale / multiple) * multiple) for side in (width, height))
    return wide, high


def fitted(picture: Image.Image, size: tuple[int, int], fit: str) -> Image.Image:
    """The picture in exactly this size."""
    if picture.size == size:
        return picture
    if fit == "stretch":
        return picture.resize(size, Image.Resampling.LANCZOS)
    if fit == "crop":
        return ImageOps.fit(picture, size, Image.Resampling.LANCZOS)
    inner = ImageOps.contain(picture, size, Image.Resampling.LANCZOS)
    ground: Any = inner.getpixel((0, 0))
    return ImageOps.pad(picture, size, Image.Resampling.LANCZOS, color=ground)
