"""Params that the tasks which make sound have in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field

AudioFormat = Annotated[
    Literal["wav", "flac", "mp3", "ogg", "opus"],
    Field(description="file format; wav and flac lose nothing (16 bit), ogg and opus are both Opus"),
]

#: the only rates that these formats know; the others take any
RATES: Mapping[str, tuple[int, ...]] = {
    "mp3": (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000),
    "ogg": (8000, 12000, 16000, 24000, 48000),
    "opus": (8000, 12000, 16000, 24000, 48000),
}
