"""Sound in and out of files: decoded as a model wants it, encoded as a job wants it. By PyAV, which is FFmpeg."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any, Self, cast

import av
import numpy as np
import numpy.typing as npt

from shared.errors import JobFailed
from shared.tasks.sounds import RATES
from workers.inputs.looks import SAFELY, InputFile, words_of

Samples = npt.NDArray[np.float32]

MEDIA_TYPES: Mapping[str, str] = {
    "wav": "audio/wav", "flac": "audio/flac", "mp3": "audio/mpeg", "ogg": "audio/ogg", "opus": "audio/opus",
}  # fmt: skip
#: container, codec and sample format of each
_CODECS: Mapping[str, tuple[str, str, str]] = {
    "wav": ("wav", "pcm_s16le", "s16"), "flac": ("flac", "flac", "s16"), "mp3": ("mp3", "libmp3lame", "s16p"),
    "ogg": ("ogg", "libopus", "s16"), "opus": ("ogg", "libopus", "s16"),
}  # fmt: skip
#: containers whose heads say to the sample how much follows
_EXACT = ("w64", "aiff", "flac", "mov,mp4,m4a,3gp,3g2,mj2")
#: damaged packets are passed over, up to this share of all
_DAMAGED = 0.05
#: what may be missing at the end: encoders disagree about their padding
_MISSING_S = 0.5
#: heads without an index are guessed from the first pieces: how wrong such a guess may be
_FAR_MORE = 4


def rate_within(form: str, rate: int) -> int:
    """The rate at which a file of this format keeps sound of this rate: the same, or the next that it knows."""
    known = RATES.get(form)
    return rate if known is None else min((each for each in known if each >= rate), default=known[-1])


def frames_of(path: Path, seconds_said: float) -> Iterator[av.AudioFrame]:
    """The first sound in a file, piece by piece; `seconds_said` are those that it was let in with.

    Raises `JobFailed` with `input_unreadable` if there is none, if more than a little of it is damaged, if it ends
    before the file's head says so, or if there is far more of it.
    """
    packets, damaged, seconds = 0, 0, 0.0
    try:
        with av.open(str(path), options=SAFELY) as container:
            stream = container.streams.audio[0]
            promised = _promised(path, container, stream)
            for packet in container.demux(stream):
                packets += 1
                try:
                    frames = packet.decode()
                except av.InvalidDataError:
                    damaged += 1
                    continue
                for frame in frames:
                    seconds += frame.samples / frame.sample_rate
                    if seconds > _FAR_MORE * seconds_said + 60:
                        message = f"there is far more sound in the file than the {seconds_said:.1f} s that it claims"
                        raise JobFailed("input_unreadable", message)
                    _require_numbers(frame, seconds)
                    frame.pts = None  # gaps are closed, not filled
                    yield frame
    except (OSError, ValueError, IndexError, av.FFmpegError) as error:
        message = f"the sound cannot be decoded after {seconds:.1f} s: {words_of(error)}"
        raise JobFailed("input_unreadable", message) from None
    if damaged > packets * _DAMAGED:
        raise JobFailed("input_unreadable", f"the sound is damaged: {damaged} of its {packets} packets are unreadable")
    if not seconds:
        raise JobFailed("input_unreadable", "there is no sound in the file")
    if promised is not None and promised - seconds > _MISSING_S:
        raise JobFailed(
            "input_unreadable", f"the file breaks off after {seconds:.1f} s of {promised:.1f} s: send it whole"
        )


def _require_numbers(frame: av.AudioFrame, seconds: float) -> None:
    """Files of floats may hold what no filter and no model takes."""
    if frame.format.name.startswith(("flt", "dbl")) and not np.isfinite(frame.to_ndarray()).all():
        message = f"the sound holds samples that are not numbers, at {seconds:.1f} s: save it anew"
        raise JobFailed("input_unreadable", message)


def _promised(path: Path, container: Any, stream: Any) -> float | None:
    """Seconds that the head of a file says, where such heads are exact."""
    if container.format.name == "wav":
        return _promised_by_wav(path)  # FFmpeg goes by the size of the file
    if container.format.name not in _EXACT or stream.duration is None or stream.time_base is None:
        return None
    return float(stream.duration * stream.time_base)


def _promised_by_wav(path: Path) -> float | None:
    """What the chunk `data` of a WAV file says; writers that could not know it leave 0, or all bits set."""
    with path.open("rb") as file:
        per_second = 0
        file.seek(12)
        while len(head := file.read(8)) == 8:
            size = int.from_bytes(head[4:], "little")
            if head[:4] == b"fmt ":
                per_second = int.from_bytes(file.read(size)[8:12], "little")
            elif head[:4] == b"data":
                return size / per_second if per_second and 0 < size < 2**32 - 2**16 else None
            else:
                file.seek(size + size % 2, 1)
    return None


def read_sound(file: InputFile, *, rate: int, channels: int = 1) -> Samples:
    """The sound of a file at this rate, as (channels, samples) between -1 and 1. Raises `JobFailed` as `frames_of`."""
    layout = "mono" if channels == 1 else "stereo"
    resampler = av.AudioResampler(format="fltp", layout=layout, rate=rate)
    parts: list[Samples] = []
    try:
        for frame in frames_of(file.path, file.facts["seconds"]):
            parts += [_samples(each) for each in resampler.resample(frame)]
        parts += [_samples(each) for each in resampler.resample(None)]
    except ValueError as error:
        raise JobFailed("input_unreadable", f"the sound changes its form on the way: {error}") from None
    sound = np.concatenate(parts, axis=1)
    if not sound.shape[1]:
        raise JobFailed("input_unreadable", f"there is less sound in the file than one sample at {rate} Hz")
    return np.ascontiguousarray(sound)


def _samples(frame: av.AudioFrame) -> Samples:
    return np.asarray(frame.to_ndarray(), dtype=np.float32)


class SoundFile:
    """A file in memory that sound is written to, piece by piece. Use it as a context; `body` is whole after that."""

    def __init__(self, form: str, *, rate: int, channels: int) -> None:
        name, codec, sample_format = _CODECS[form]
        self.rate = rate_within(form, rate)
        self._layout = "mono" if channels == 1 else "stereo"
        self._file = io.BytesIO()
        # Without this flag each Ogg file has a random number of its own.
        self._container = av.open(self._file, "w", format=name, options={"fflags": "+bitexact"})
        stream = self._container.add_stream(codec, rate=self.rate, layout=self._layout, format=sample_format)
        self._stream = cast("av.AudioStream", stream)
        if form == "mp3":
            self._stream.bit_rate = (96_000 if self.rate >= 32_000 else 64_000) * channels
        self._position = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._container.mux(self._stream.encode(None))
        self._container.close()

    def add(self, sound: Samples, rate: int) -> None:
        """More of it: (channels, samples) between -1 and 1; what is beyond is clipped."""
        if not sound.shape[1]:
            return
        shades = np.ascontiguousarray(np.clip(sound, -1.0, 1.0), dtype=np.float32)
        frame = av.AudioFrame.from_ndarray(shades, format="fltp", layout=self._layout)
        frame.sample_rate = rate
        frame.time_base = Fraction(1, rate)
        frame.pts = self._position
        self._position += sound.shape[1]
        self._container.mux(self._stream.encode(frame))

    @property
    def body(self) -> bytes:
        """The whole file."""
        return self._file.getvalue()


def write_sound(sound: Samples, *, rate: int, form: str) -> bytes:
    """A file of (channels, samples) between -1 and 1; what is beyond is clipped."""
    with SoundFile(form, rate=rate, channels=len(sound)) as file:
        for start in range(0, sound.shape[1], rate):
            file.add(sound[:, start : start + rate], rate)
    return file.body


def facts_of(sound: Samples, *, rate: int, form: str) -> dict[str, Any]:
    """What a file of this sound is like: seconds, and the rate and the channels that the file has."""
    return {
        "seconds": round(sound.shape[1] / rate, 3),
        "sample_rate": rate_within(form, rate),
        "channels": len(sound),
        "format": form,
    }
