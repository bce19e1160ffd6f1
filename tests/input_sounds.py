"""Recordings to begin with, written by another library than the one that reads them."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from functools import cache
from pathlib import Path

import numpy as np
import soundfile


def speech(seconds: float, rate: int, channels: int = 1, *, loudness: float = 0.3) -> np.ndarray:
    """Something with syllables and pauses, as (samples, channels)."""
    at = np.arange(int(seconds * rate)) / rate
    syllables = np.clip(np.sin(2 * np.pi * 2.3 * at), 0, None) * (np.sin(2 * np.pi * 0.31 * at) > -0.6)
    voice = sum(np.sin(2 * np.pi * n * 140 * at + n) / n for n in range(1, 12))
    sound = loudness * syllables * np.asarray(voice) / 3
    return np.stack([sound * (1 - 0.4 * channel) for channel in range(channels)], axis=1).astype(np.float32)


def hiss(seconds: float, rate: int, channels: int = 1, *, level: float = 0.01) -> np.ndarray:
    """Steady noise, as (samples, channels)."""
    rng = np.random.default_rng(5)
    return (level * rng.standard_normal((int(seconds * rate), channels))).astype(np.float32)


@cache
def sounds() -> dict[str, str]:
    """Paths of recordings, by what is special about them: made once per process."""
    folder = Path(tempfile.mkdtemp(prefix="aigc-sounds-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    made = {
        "short.wav": (speech(2.5, 16000), 16000),
        "long.wav": (speech(65, 8000), 8000),
        "stereo.flac": (speech(3.2, 44100, 2), 44100),
        "fine.flac": (speech(2.2, 96000, 2), 96000),
        "noisy.wav": (speech(6, 44100, 1) + hiss(6, 44100), 44100),
        "silent.wav": (np.zeros((32000, 1), dtype=np.float32), 16000),
    }
    for name, (sound, rate) in made.items():
        soundfile.write(folder / name, sound, rate)
    soundfile.write(folder / "music.mp3", speech(4, 44100, 2), 44100, format="MP3")
    np.save(folder / "voice.npy", np.sin(np.arange(16, dtype=np.float32)))
    np.save(folder / "wide.npy", np.zeros(512, dtype=np.float32))
    return {path.stem: str(path) for path in folder.iterdir()}
