"""Recordings to try tasks with that listen: tones that swell and stop, as speech does."""

from __future__ import annotations

import math
import random
import struct
import wave
from pathlib import Path

_RATE = 16_000


def write_sounds(folder: Path) -> list[Path]:
    """`talk.wav`, four seconds, and `noisy.wav`, the same with a hiss; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    return [_written(folder / "talk.wav", hiss=0.0), _written(folder / "noisy.wav", hiss=0.02)]


def _written(path: Path, *, hiss: float) -> Path:
    rng = random.Random(7)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(_RATE)
        for number in range(4 * _RATE):
            at = number / _RATE
            voice = sum(math.sin(2 * math.pi * 140 * n * at) / n for n in range(1, 6))
            level = 0.25 * max(0.0, math.sin(2 * math.pi * 2.3 * at)) * voice + rng.gauss(0, hiss)
            file.writeframesraw(struct.pack("<h", round(32767 * max(-1.0, min(1.0, level)))))
    return path
