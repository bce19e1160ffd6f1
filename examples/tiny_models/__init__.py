"""Tiny models with random weights, saved through the libraries' public classes: no download, made in a second.

Each function takes a folder to build in and returns the model's own folder; a second call finds it there.
"""

from __future__ import annotations

from tiny_models.pictures import ddpm, stable_diffusion, stable_diffusion_xl
from tiny_models.texts import bart, classifier, gpt2, gpt2_chat, llama, nli, sliding, t5
from tiny_models.videos import (
    animatediff,
    cogvideox,
    cogvideox_of_pictures,
    ltx,
    ltx2,
    stable_video_diffusion,
    wan,
    wan_of_pictures,
)

__all__ = [
    "animatediff", "bart", "classifier", "cogvideox", "cogvideox_of_pictures", "ddpm", "gpt2", "gpt2_chat", "llama",
    "ltx", "ltx2", "nli", "sliding", "stable_diffusion", "stable_diffusion_xl", "stable_video_diffusion",
    "t5", "wan", "wan_of_pictures",
]  # fmt: skip
