"""What a picture file says about the way it was made.

Two texts stand in each file that a worker has made: `parameters`, in the form that AUTOMATIC1111's web UI writes and
most tools read, and `aigc`, a JSON record to make the same picture again. A PNG holds them as text chunks; JPEG and
WebP hold the first as EXIF UserComment (as the web UI does) and the second as EXIF ImageDescription. A GIF, which has
no room for both, holds the record as its comment.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shared.errors import RequestError

if TYPE_CHECKING:
    from PIL import Image

#: what an EXIF UserComment in UTF-16 begins with
UNICODE = b"UNICODE\0"
_FORMATS = ["PNG", "JPEG", "WEBP", "GIF"]


def read_parameters(path: Path | str) -> dict[str, Any]:
    """How a picture was made: task, model, revision, params, its own seed, and more.

    Raises `RequestError` if the file is no picture of ours.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path, formats=_FORMATS) as image:
            text, note = _texts(image)
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError, SyntaxError, ValueError) as error:
        raise RequestError(f"{path} cannot be read as a PNG, JPEG, WebP or GIF picture: {error}") from None
    try:
        record = json.loads(note)
    except (ValueError, RecursionError):
        record = None
    if not isinstance(record, dict) or not isinstance(record.get("params"), dict):
        raise RequestError(f"{path} does not say how it was made: it carries no record of this program")
    if "prompt" not in record["params"]:
        # Long prompts stand in the other text alone; tasks without one have an empty line there.
        prompts, _, _ = text.rpartition("\n")
        prompt, _, negative = prompts.partition("\nNegative prompt: ")
        record["params"] |= {k: v for k, v in (("prompt", prompt), ("negative_prompt", negative)) if v}
    return record


def _texts(image: Image.Image) -> tuple[str, str]:
    from PIL import ExifTags

    if image.format == "PNG":
        image.load()  # text may stand behind the pixels
        return str(image.info.get("parameters", "")), str(image.info.get("aigc", ""))
    if image.format == "GIF":
        note = image.info.get("comment", b"")
        return "", note.decode("utf-8", "replace") if isinstance(note, bytes) else ""
    exif = image.getexif()
    comment = exif.get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.UserComment, b"")
    text = comment.removeprefix(UNICODE).decode("utf-16-be", "replace") if isinstance(comment, bytes) else ""
    return text, str(exif.get(ExifTags.Base.ImageDescription, ""))
