"""Video files that carry the way they were made, with a poster and a small moving picture beside them.

An mp4 is H.264 in yuv420p with its index in front, and a webm is VP9, with AAC or Opus where there is sound: both play
in a browser while they load. PyAV writes them, with the encoders of the FFmpeg that comes with it (libx264 and
libvpx-vp9); Pillow writes moving webp and gif. The JSON record stands in the file's comment, and in the EXIF
ImageDescription of a webp.
"""

from __future__ import annotations

import io
import itertools
import json
import math
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
from av.audio.stream import AudioStream
from av.container import OutputContainer
from av.video.reformatter import ColorRange, Colorspace
from av.video.stream import VideoStream
from PIL import ExifTags, Image

from shared.errors import RequestError
from workers.inputs.looks import SAFELY

#: (frames, height, width, 3)
Frames = npt.NDArray[np.uint8]

MEDIA_TYPES = {"mp4": "video/mp4", "webm": "video/webm", "webp": "image/webp", "gif": "image/gif"}

#: codec of a film's sound, and the rate that it is brought to (None: its own)
_SOUNDS: Mapping[str, tuple[str, int | None]] = {"mp4": ("aac", None), "webm": ("libopus", 48000)}
#: codec, its settings and the container's: no loss that is seen, quick enough for a model, and no random id
_FILMS: Mapping[str, tuple[str, Mapping[str, str], Mapping[str, str]]] = {
    "mp4": ("libx264", {"crf": "18", "preset": "medium"}, {"movflags": "+faststart", "fflags": "+bitexact"}),
    "webm": (
        "libvpx-vp9",
        {"crf": "24", "b": "0", "deadline": "good", "cpu-used": "4", "row-mt": "1"},
        {"fflags": "+bitexact"},
    ),
}
#: so many on every machine: what an encoder writes depends on the number of its threads
_THREADS = 4
_BT709 = 1
#: milliseconds that the time of a frame is counted in
_TICKS = {"webp": 1, "gif": 10}
_WEBP_QUALITY = 90
#: the palette of a gif is made of at most so many of its frames
_PALETTE_FRAMES = 8
#: of a preview: pixels of its longer side, and frames in a second
_PREVIEW_SIDE = 320
_PREVIEW_FPS = 12


@dataclass(frozen=True, slots=True)
class Sound:
    """What is heard beside a video."""

    #: (channels, samples) between -1 and 1
    samples: npt.NDArray[np.float32]
    #: samples in a second
    rate: int

    def facts(self, form: str) -> dict[str, Any]:
        """Of a file of this format; a webp or gif is silent."""
        if form not in _SOUNDS:
            return {}
        return {"sample_rate": _SOUNDS[form][1] or self.rate, "channels": len(self.samples)}


@dataclass(frozen=True, slots=True)
class Reel:
    """What a moving picture is going to be, before it is written."""

    frames: int
    width: int
    height: int
    #: frames in a second
    fps: float

    def facts(self, form: str) -> dict[str, Any]:
        """Of a file of this format."""
        side = _even if form in _FILMS else int
        return {
            "width": side(self.width),
            "height": side(self.height),
            "frames": self.frames,
            "fps": int(self.fps) if float(self.fps).is_integer() else round(self.fps, 3),
            "seconds": round(self.seconds(form), 3),
            "format": form,
        }

    def seconds(self, form: str) -> float:
        """How long a file of this format takes."""
        return sum(_durations(self, form)) / 1000 if form in _TICKS else self.frames / self.fps

    @property
    def every(self) -> int:
        """A preview has the first of so many frames."""
        return max(1, math.ceil(self.fps / _PREVIEW_FPS))

    def preview(self) -> Reel:
        """A smaller one of the same length, with fewer frames."""
        scale = min(1.0, _PREVIEW_SIDE / max(self.width, self.height))
        width, height = (max(1, round(side * scale)) for side in (self.width, self.height))
        return Reel(math.ceil(self.frames / self.every), width, height, self.fps / self.every)


def write_video(frames: Frames, *, fps: int, form: str, record: Mapping[str, Any], sound: Sound | None = None) -> bytes:
    """The bytes of a video file; `record` is what `read_parameters` gives back.

    A side that is odd gets one more row or column in an mp4 or webm, which have their colours in blocks of four pixels.
    """
    if form in _FILMS:
        return _film(frames, fps, form, json.dumps(record), sound)
    return _moving([Image.fromarray(frame) for frame in frames], _reel(frames, fps), form, json.dumps(record))


def write_preview(frames: Frames, *, fps: int, form: str, record: Mapping[str, Any]) -> bytes:
    """The bytes of the moving picture that `Reel.preview` describes, as webp or gif."""
    reel = _reel(frames, fps)
    small = reel.preview()
    size = (small.width, small.height)
    pictures = [Image.fromarray(frame).resize(size, Image.Resampling.LANCZOS) for frame in frames[:: reel.every]]
    return _moving(pictures, small, form, json.dumps(record))


def read_parameters(path: Path | str) -> dict[str, Any]:
    """How a video was made: task, model, revision, params, its own seed, and more.

    Raises `RequestError` if the file is no video of ours.
    """
    try:
        record = json.loads(_note(path))
    except (OSError, av.FFmpegError, Image.DecompressionBombError, SyntaxError) as error:
        raise RequestError(f"{path} cannot be read as a video: {error}") from None
    except ValueError:
        record = None
    if not isinstance(record, dict) or not isinstance(record.get("params"), dict):
        raise RequestError(f"{path} does not say how it was made: it carries no record of this program")
    return record


def _note(path: Path | str) -> str:
    with Path(path).open("rb") as file:
        moving = file.read(4) in (b"GIF8", b"RIFF")
    if moving:
        with Image.open(path, formats=["GIF", "WEBP"]) as image:
            comment = image.info.get("comment", b"") if image.format == "GIF" else b""
            return comment.decode() or str(image.getexif().get(ExifTags.Base.ImageDescription, ""))
    with av.open(str(path), options=SAFELY) as container:
        said = {name.lower(): text for name, text in container.metadata.items()}
        return said.get("comment", "")


def _film(frames: Frames, fps: int, form: str, note: str, sound: Sound | None) -> bytes:
    """By way of a file: to put the index in front, FFmpeg reads what it has written."""
    codec, settings, layout = _FILMS[form]
    count, height, width = frames.shape[:3]
    edge = ((0, height % 2), (0, width % 2), (0, 0))
    with tempfile.TemporaryDirectory(prefix="aigc-video-") as folder:
        path = Path(folder) / f"video.{form}"
        with av.open(str(path), "w", format=form, options=dict(layout)) as container:
            container.metadata["comment"] = note
            stream: VideoStream = container.add_stream(codec, rate=fps, options=dict(settings))  # type: ignore[assignment]
            context = stream.codec_context
            context.width, context.height, context.pix_fmt = _even(width), _even(height), "yuv420p"
            context.color_range, context.colorspace = ColorRange.MPEG, _BT709
            context.color_primaries = context.color_trc = _BT709
            context.thread_count = _THREADS
            if sound is not None:
                _add_sound(container, sound, form)
            for number in range(count):
                frame = av.VideoFrame.from_ndarray(np.pad(frames[number], edge, mode="edge"), format="rgb24").reformat(
                    format="yuv420p", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG
                )
                frame.pts, frame.duration, frame.time_base = number, 1, Fraction(1, fps)
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        return path.read_bytes()


def _add_sound(container: OutputContainer, sound: Sound, form: str) -> None:
    """A stream of it, which the container lays between the frames."""
    codec, rate = _SOUNDS[form]
    layout = "mono" if len(sound.samples) == 1 else "stereo"
    stream: AudioStream = container.add_stream(codec, rate=rate or sound.rate, layout=layout)  # type: ignore[assignment]
    context = stream.codec_context
    resampler = av.AudioResampler(
        format=context.format, layout=layout, rate=context.rate, frame_size=context.frame_size or 1024
    )
    shades = np.ascontiguousarray(np.clip(sound.samples, -1.0, 1.0), dtype=np.float32)
    frame = av.AudioFrame.from_ndarray(shades, format="fltp", layout=layout)
    frame.sample_rate = sound.rate
    for each in (*resampler.resample(frame), *resampler.resample(None)):
        container.mux(stream.encode(each))
    container.mux(stream.encode(None))


def _moving(pictures: list[Image.Image], reel: Reel, form: str, note: str) -> bytes:
    """A webp or gif that begins anew for ever. Frames that do not differ are stored once, for as long."""
    first, *rest = pictures if form == "webp" else _in_one_palette(pictures)
    how: dict[str, Any]
    if form == "webp":
        exif = Image.Exif()
        exif[ExifTags.Base.ImageDescription] = note
        exif[ExifTags.Base.Software] = "aigc"
        how = {"exif": exif.tobytes(), "quality": _WEBP_QUALITY, "method": 2}
    else:
        how = {"comment": note.encode(), "optimize": False}
    body = io.BytesIO()
    durations = _durations(reel, form)
    first.save(body, form.upper(), save_all=True, append_images=rest, duration=durations, loop=0, **how)
    return body.getvalue()


def _in_one_palette(pictures: list[Image.Image]) -> list[Image.Image]:
    """A palette per frame would make what stands still flicker."""
    some = pictures[:: math.ceil(len(pictures) / _PALETTE_FRAMES)]
    strip = Image.fromarray(np.concatenate([np.asarray(picture) for picture in some]))
    palette = strip.quantize(256)
    return [picture.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG) for picture in pictures]


def _durations(reel: Reel, form: str) -> list[int]:
    """Milliseconds of each frame, in whole ticks: some take one more than others, so that all take as long as meant."""
    tick = _TICKS[form]
    ends = [round(1000 * number / reel.fps / tick) * tick for number in range(reel.frames + 1)]
    return [max(tick, end - begin) for begin, end in itertools.pairwise(ends)]


def _reel(frames: Frames, fps: int) -> Reel:
    count, height, width = frames.shape[:3]
    return Reel(count, width, height, fps)


def _even(side: int) -> int:
    return side + side % 2
