"""What a file is, by its content: its name and what a server says of it count for nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared.errors import JobFailed
from shared.tasks.inputs import InputKind

#: FFmpeg opens the file itself, as one of these, and nothing that the file may name
_CONTAINERS = ("wav", "w64", "aiff", "flac", "mp3", "ogg", "aac", "mov", "matroska", "avi", "mpegts", "gif")
SAFELY = {"protocol_whitelist": "file", "format_whitelist": ",".join(_CONTAINERS)}
#: pictures are decoded by these parts of Pillow only
IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")


@dataclass(frozen=True, slots=True)
class Limits:
    """The largest inputs that a worker takes."""

    #: of a picture, and of one frame of a video
    pixels: int
    #: of sound and video
    seconds: float


@dataclass(frozen=True, slots=True)
class InputFile:
    """A file that a job named, on this host."""

    path: Path
    kind: InputKind
    media_type: str
    #: width, height; seconds, sample_rate, channels; fps, frames; characters
    facts: Mapping[str, Any]


def examine(path: Path, kind: InputKind, shown: str, limits: Limits) -> InputFile:
    """See that a file is what the job takes it for. Raises `JobFailed`: `input_unreadable`, `input_too_big`."""
    look = {"image": _image, "audio": _audio, "video": _video, "text": _text}.get(kind)
    if look is None:
        return InputFile(path, kind, "application/octet-stream", {"bytes": path.stat().st_size})
    return look(path, kind, shown, limits)


def _image(path: Path, kind: InputKind, shown: str, limits: Limits) -> InputFile:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path, formats=IMAGE_FORMATS) as image:
            width, height = image.size
            if width * height > limits.pixels:
                raise JobFailed(
                    "input_too_big",
                    f"{shown} has {width}x{height} pixels, and this worker takes {limits.pixels:,} in all "
                    "(AIGC_INPUT_PIXELS): make it smaller",
                )
            image.load()
            return InputFile(path, kind, f"image/{str(image.format).lower()}", {"width": width, "height": height})
    except Image.DecompressionBombError:
        most = f"the {limits.pixels:,} (AIGC_INPUT_PIXELS) that this worker takes"
        raise JobFailed("input_too_big", f"{shown} has far more pixels than {most}") from None
    except UnidentifiedImageError:  # its words name a file of the worker's own
        names = ", ".join(IMAGE_FORMATS)
        raise JobFailed("input_unreadable", f"{shown} is no picture, or of a kind other than {names}") from None
    except (OSError, SyntaxError, ValueError) as error:
        raise JobFailed("input_unreadable", f"{shown} is a picture that cannot be read to its end: {error}") from None


def _audio(path: Path, kind: InputKind, shown: str, limits: Limits) -> InputFile:
    import av

    try:
        with av.open(str(path), options=SAFELY) as container:
            if not container.streams.audio:
                raise JobFailed("input_unreadable", f"{shown} holds no sound")
            stream = container.streams.audio[0]
            facts = {"seconds": _seconds(container), "sample_rate": stream.rate, "channels": stream.channels}
    except (OSError, ValueError, av.FFmpegError) as error:
        raise JobFailed("input_unreadable", f"{shown} is no sound that can be read: {words_of(error)}") from None
    _require_short(facts["seconds"], shown, limits)
    return InputFile(path, kind, "audio/*", facts)


def _video(path: Path, kind: InputKind, shown: str, limits: Limits) -> InputFile:
    import av

    try:
        with av.open(str(path), options=SAFELY) as container:
            if not container.streams.video:
                raise JobFailed("input_unreadable", f"{shown} holds no pictures")
            stream = container.streams.video[0]
            width, height = stream.width, stream.height
            fps = float(stream.average_rate or 0)
            facts = {"seconds": _seconds(container), "width": width, "height": height, "fps": fps}
    except (OSError, ValueError, av.FFmpegError) as error:
        raise JobFailed("input_unreadable", f"{shown} is no video that can be read: {words_of(error)}") from None
    if width * height > limits.pixels:
        raise JobFailed("input_too_big", f"{shown} has {width}x{height} pixels: make it smaller")
    _require_short(facts["seconds"], shown, limits)
    return InputFile(path, kind, "video/*", facts)


def _text(path: Path, kind: InputKind, shown: str, _limits: Limits) -> InputFile:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise JobFailed("input_unreadable", f"{shown} is no text in UTF-8: {error}") from None
    if "\0" in text:
        raise JobFailed("input_unreadable", f"{shown} is no text: it holds zero bytes")
    return InputFile(path, kind, "text/plain", {"characters": len(text)})


def words_of(error: Exception) -> str:
    """What FFmpeg and the system say, less the path, which is the worker's own and tells a reader nothing."""
    return getattr(error, "strerror", None) or str(error)


def _seconds(container: Any) -> float:
    """Of a whole file; of one whose head does not say, what its packets say."""
    if container.duration:
        return float(container.duration) / 1_000_000
    last = 0.0
    for packet in container.demux():
        if packet.pts is not None and packet.time_base is not None:
            last = max(last, float(packet.pts * packet.time_base))
    return last


def _require_short(seconds: float, shown: str, limits: Limits) -> None:
    if seconds <= 0:
        raise JobFailed("input_unreadable", f"{shown} has no length")
    if seconds > limits.seconds:
        raise JobFailed(
            "input_too_big",
            f"{shown} takes {seconds:,.0f} s, and this worker takes {limits.seconds:,.0f} (AIGC_INPUT_SECONDS): cut it",
        )
