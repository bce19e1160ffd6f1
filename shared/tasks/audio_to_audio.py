"""`audio-to-audio`: a recording made better: less noise, another loudness, another rate or format."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from shared.tasks import Params, Task
from shared.tasks.inputs import AudioInput
from shared.tasks.sounds import RATES, AudioFormat


class AudioToAudioParams(Params):
    """What an `audio-to-audio` job may set."""

    audio: Annotated[AudioInput, Field(description="the recording; of a video, its sound")]
    denoise_db: Annotated[
        float | None,
        Field(ge=1, le=40, description="take steady noise (hiss, hum, a fan) down by about so many decibels; try 12"),
    ] = None
    loudness_lufs: Annotated[
        float | None,
        Field(
            ge=-40,
            le=-5,
            description="how loud it is to be as a whole (EBU R 128): -23 for broadcast, -16 for podcasts, -14 for "
            "streaming, say",
        ),
    ] = None
    peak_dbtp: Annotated[
        float | None,
        Field(
            ge=-20,
            le=0,
            description="with `loudness_lufs`: no true peak above this, even if it gets less loud; -1 by default",
        ),
    ] = None
    sample_rate: Annotated[
        int | None, Field(ge=8000, le=192_000, description="samples per second; by default its own")
    ] = None
    channels: Annotated[
        Literal[1, 2] | None, Field(description="1 for mono, 2 for stereo; by default its own, up to 2")
    ] = None
    format: AudioFormat = "wav"

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.peak_dbtp is not None and self.loudness_lufs is None:
            raise ValueError("`peak_dbtp` has no effect without `loudness_lufs`: remove it, or set both")
        known = RATES.get(self.format)
        if self.sample_rate is not None and known is not None and self.sample_rate not in known:
            nearest = min(known, key=lambda rate: abs(rate - (self.sample_rate or 0)))
            raise ValueError(
                f"{self.format} knows no {self.sample_rate} Hz: set sample_rate to {nearest}, or format to wav or flac"
            )
        return self


TASK = Task(
    name="audio-to-audio",
    summary="a recording with less noise, at another loudness, rate or format",
    params=AudioToAudioParams,
    needs_model=False,
    queue="cpu",
    cost=lambda params: 3.0 if params.denoise_db is not None else 1.0,
    example={
        "task": "audio-to-audio",
        "params": {
            "audio": "https://example.org/interview.mp3",
            "denoise_db": 12,
            "loudness_lufs": -16,
            "format": "mp3",
        },
    },
)
