"""Picture files that carry the way they were made.

Two texts stand in each file: `parameters`, in the form that AUTOMATIC1111's web UI writes and most tools read, and
`aigc`, a JSON record to make the same picture again. A PNG holds them as text chunks; JPEG and WebP hold the first as
EXIF UserComment (as the web UI does) and the second as EXIF ImageDescription.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import ExifTags, Image, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

from shared.errors import RequestError

MEDIA_TYPES = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}
_FORMATS = ["PNG", "JPEG", "WEBP"]
# A JPEG segment holds 65,533 bytes; the EXIF head and tables take a few hundred.
_EXIF_ROOM = 65_000
_UNICODE = b"UNICODE\0"
# Z_RLE of zlib: after the filters of PNG there are hardly longer repetitions in what a model paints. CPU time of one
# 1024x1024 picture with a photograph's spectrum: 81 ms for 1,529 kB; levels 4 and 1 take 218 and 89 ms for 1,533 and
# 1,677 kB. A drawing with flat grounds becomes a sixth larger (408 for 352 kB) and takes 48 for 73 ms.
_RUNS = 3
# Pillow's default is 4. Of a noisier picture of that size: 96 ms for 595 kB, where the default takes 168 ms for 600 kB.
_WEBP_EFFORT = 2


def encode(image: Image.Image, format_: str, quality: int | None, record: Mapping[str, Any], sampler: str) -> bytes:
    """The bytes of a picture file.

    `record` is what `read_parameters` gives back; `sampler` is the sampler's name in the web UI's words. JSON can
    outgrow the room that a JPEG has for it: then the record goes without its prompts, which `parameters` has too.
    """
    text = describe(record, sampler)
    body = io.BytesIO()
    if format_ == "png":
        info = PngInfo()
        info.add_text("parameters", text)
        info.add_text("aigc", json.dumps(record, ensure_ascii=False))
        image.save(body, "PNG", pnginfo=info, compress_type=_RUNS)
        return body.getvalue()
    comment = _UNICODE + text.encode("utf-16-be")
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


def read_parameters(path: Path | str) -> dict[str, Any]:
    """How a picture was made: task, model, revision, params, its own seed, and more.

    Raises `RequestError` if the file is no picture of ours.
    """
    try:
        with Image.open(path, formats=_FORMATS) as image:
            text, note = _texts(image)
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError, SyntaxError, ValueError) as error:
        raise RequestError(f"{path} cannot be read as a PNG, JPEG or WebP picture: {error}") from None
    try:
        record = json.loads(note)
    except ValueError:
        record = None
    if not isinstance(record, dict) or not isinstance(record.get("params"), dict):
        raise RequestError(f"{path} does not say how it was made: it carries no record of this program")
    if "prompt" not in record["params"]:
        prompts, _, _ = text.rpartition("\n")
        prompt, mark, negative = prompts.partition("\nNegative prompt: ")
        record["params"] |= {"prompt": prompt} | ({"negative_prompt": negative} if mark else {})
    return record


def _texts(image: Image.Image) -> tuple[str, str]:
    if image.format == "PNG":
        image.load()  # text may stand behind the pixels
        return str(image.info.get("parameters", "")), str(image.info.get("aigc", ""))
    exif = image.getexif()
    comment = exif.get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.UserComment, b"")
    text = comment.removeprefix(_UNICODE).decode("utf-16-be", "replace") if isinstance(comment, bytes) else ""
    return text, str(exif.get(ExifTags.Base.ImageDescription, ""))


def _quoted(value: object) -> str:
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return json.dumps(text, ensure_ascii=False) if any(mark in text for mark in ",:\n") else text
