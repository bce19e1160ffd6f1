"""Tiny models with random weights, saved through the libraries' public classes: no download, made in a second.

Each function takes a folder to build in and returns the model's own folder; a second call finds it there.
"""

from __future__ import annotations

from tiny_models.pictures import ddpm, stable_diffusion, stable_diffusion_xl
from tiny_models.sounds import (
    audioldm2,
    bark,
    fastspeech2,
    musicgen,
    musicgen_melody,
    musicgen_stereo,
    speecht5,
    stable_audio,
    vits,
    wav2vec2,
    whisper,
)
from tiny_models.texts import bart, classifier, gpt2, gpt2_chat, llama, nli, sliding, t5

__all__ = [
    "audioldm2", "bark", "bart", "classifier", "ddpm", "fastspeech2", "gpt2", "gpt2_chat", "llama", "musicgen",
    "musicgen_melody", "musicgen_stereo", "nli", "sliding", "speecht5", "stable_audio", "stable_diffusion",
    "stable_diffusion_xl", "t5", "vits", "wav2vec2", "whisper",
]  # fmt: skip
