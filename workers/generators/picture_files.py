"""Picture files that carry the way they were made; `shared.picture_records` says how, and reads it."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from typing import Any

from PIL import ExifTags, Image
from PIL.PngImagePlugin import PngInfo

from shared.picture_records import UNICODE

MEDIA_TYPES = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}
# A JPEG segment holds 65,533 bytes; the EXIF head and tables take a few hundred.
_EXIF_ROOM = 65_000
# Z_RLE of zlib: after the filters of PNG there are hardly longer repetitions in what a model paints. CPU time of one
# 1024x1024 picture with a photograph's spectrum: 81 ms for 1,529 kB; levels 4 and 1 take 218 and 89 ms for 1,533 and
# 1,677 kB. A drawing with flat grounds becomes a sixth larger (408 for 352 kB) and takes 48 for 73 ms.
_RUNS = 3
# Pillow's default is 4. Of a noisier picture of that size: 96 ms for 595 kB, where the default takes 168 ms for 600 kB.
_WEBP_EFFORT = 2


def encode(image: Image.Image, format_: str, quality: int | None, record: Mapping[str, Any], sampler: str) -> bytes:
    """The bytes of a picture file.

    `record` is what `shared.picture_records.read_parameters` gives back; `sampler` is the sampler's name in the web
    UI's words. JSON can outgrow the room that a JPEG has for it: then the record goes without its prompts, which
    `parameters` has too.
    """
    text = describe(record, sampler)
    body = io.BytesIO()
    if format_ == "png":
        info = PngInfo()
        info.add_text("parameters", text)
        info.add_text("aigc", json.dumps(record, ensure_ascii=False))
        image.save(body, "PNG", pnginfo=info, compress_type=_RUNS)
        return body.getvalue()
    comment = UNICODE + text.encode("utf-16-be")
    note = json.dumps(record)
    if len(comment) + len(note) > _EXIF_ROOM:
        params = {name: value for name, value in record["params"].items() if name not in ("prompt", "negative_prompt")}
        note = json.dumps({**record, "params": params})
    exif = Image.Exif()
    exif[ExifTags.Base.ImageDescription] = note
    exif[ExifTags.Base.Software] = "aigc"
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment] = comment
    # Pillow writes the comment as BYTE, the standard wants UNDEFINED; all that stands before it is ASCII.
    head = b"\x92\x86\x00"
    block = exif.tobytes().replace(head + b"\x01", head + b"\x07", 1)
    effort = {"method": _WEBP_EFFORT} if format_ == "webp" else {}
    image.save(body, format_.upper(), quality=quality or 90, exif=block, **effort)
    return body.getvalue()


def describe(record: Mapping[str, Any], sampler: str) -> str:
    """The web UI's `parameters` text."""
    params = record["params"]
    facts = {
        "Steps": params.get("num_inference_steps"),
        "Sampler": sampler,
        "CFG scale": record["guidance_scale"],
        "Seed": record["seed"],
        "Size": f"{record['width']}x{record['height']}",
        "Model": record["model"],
        "Version": "aigc",
    }
    lines = [params.get("prompt", "")]
    if params.get("negative_prompt"):
        lines.append(f"Negative prompt: {params['negative_prompt']}")
    lines.append(", ".join(f"{name}: {_quoted(value)}" for name, value in facts.items() if value is not None))
    return "\n".join(lines)


def _quoted(value: object) -> str:
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return json.dumps(text, ensure_ascii=False) if any(mark in text for mark in ",:\n") else text
