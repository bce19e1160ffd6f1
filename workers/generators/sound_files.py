"""Sound in and out of files: decoded as a model wants it, encoded as a job wants it. By PyAV, which is FFmpeg."""

from __future__ import annotations

import io
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt

from workers.inputs.looks import SAFELY

Samples = npt.NDArray[np.float32]

MEDIA_TYPES: Mapping[str, str] = {
    "wav": "audio/wav", "flac": "audio/flac", "mp3": "audio/mpeg", "ogg": "audio/ogg", "opus": "audio/ogg",
}  # fmt: skip
#: container, codec and sample format of each
_CODECS: Mapping[str, tuple[str, str, str]] = {
    "wav": ("wav", "pcm_s16le", "s16"), "flac": ("flac", "flac", "s16"), "mp3": ("mp3", "libmp3lame", "s16p"),
    "ogg": ("ogg", "libvorbis", "fltp"), "opus": ("ogg", "libopus", "s16"),
}  # fmt: skip
#: opus knows these rates only
_OPUS_RATES = (8000, 12000, 16000, 24000, 48000)


def read_sound(path: Path, *, rate: int, channels: int = 1) -> Samples:
    """The sound of a file at this rate, as (channels, samples) between -1 and 1."""
    layout = "mono" if channels == 1 else "stereo"
    resampler = av.AudioResampler(format="fltp", layout=layout, rate=rate)
    parts: list[npt.NDArray[np.float32]] = []
    with av.open(str(path), options=SAFELY) as container:
        for frame in container.decode(audio=0):
            frame.pts = None  # gaps are closed, not filled
            parts += [each.to_ndarray() for each in resampler.resample(frame)]
        parts += [each.to_ndarray() for each in resampler.resample(None)]
    sound = np.concatenate(parts, axis=1) if parts else np.zeros((channels, 0), dtype=np.float32)
    return np.ascontiguousarray(sound, dtype=np.float32)


def write_sound(sound: Samples, *, rate: int, form: str) -> bytes:
    """A file of (channels, samples) between -1 and 1; what is beyond is clipped."""
    container_name, codec, sample_format = _CODECS[form]
    out_rate = min((each for each in _OPUS_RATES if each >= rate), default=48000) if form == "opus" else rate
    layout = "mono" if len(sound) == 1 else "stereo"
    shades = np.ascontiguousarray(np.clip(sound, -1.0, 1.0), dtype=np.float32)
    body = io.BytesIO()
    with av.open(body, "w", format=container_name) as container:
        stream = container.add_stream(codec, rate=out_rate, layout=layout, format=sample_format)
        stream.codec_context.time_base = Fraction(1, out_rate)
        resampler = av.AudioResampler(
            format=sample_format, layout=layout, rate=out_rate, frame_size=stream.frame_size or 0
        )
        frame = av.AudioFrame.from_ndarray(shades, format="fltp", layout=layout)
        frame.sample_rate = rate
        for each in (*resampler.resample(frame), *resampler.resample(None)):
            container.mux(stream.encode(each))
        container.mux(stream.encode(None))
    return body.getvalue()
