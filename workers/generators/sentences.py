"""Long texts in pieces that a voice can say in one breath, and the sound of the pieces joined again without clicks."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from workers.generators.sound_files import Samples

_END = re.compile(r"(?<=[.!?…。！？])[\"'”’)\]]*\s+|\n{2,}")
_BREATH = re.compile(r"(?<=[,;:–—、，；：])\s*")
#: seconds over which a piece fades in and out
FADE_S = 0.005


def sentences(text: str, *, most: int) -> list[str]:
    """The text in sentences of at most `most` characters; longer ones are cut at commas, then between words."""
    pieces: list[str] = []
    for sentence in (part.strip() for part in _END.split(text)):
        if sentence:
            pieces += _shorter(sentence, most)
    return pieces


def _shorter(sentence: str, most: int) -> list[str]:
    if len(sentence) <= most:
        return [sentence]
    pieces, piece = [], ""
    parts = [part for part in _BREATH.split(sentence) if part]
    words = [word for part in parts for word in ([part] if len(part) <= most else part.split())]
    for word in words:
        if piece and len(piece) + 1 + len(word) > most:
            pieces.append(piece)
            piece = ""
        piece = f"{piece} {word}".strip()
        while len(piece) > most:  # a word without end
            pieces.append(piece[:most])
            piece = piece[most:]
    return [*pieces, piece] if piece else pieces


def joined(pieces: Sequence[Samples], *, rate: int, pause_s: float) -> Samples:
    """One sound of (channels, samples): each piece fades in and out, with silence between them."""
    fade = max(1, round(FADE_S * rate))
    silence = np.zeros((len(pieces[0]), round(pause_s * rate)), dtype=np.float32)
    parts: list[Samples] = []
    for number, piece in enumerate(pieces):
        soft = piece.copy()
        ramp = np.linspace(0.0, 1.0, min(fade, soft.shape[1]), dtype=np.float32)
        soft[:, : len(ramp)] *= ramp
        soft[:, soft.shape[1] - len(ramp) :] *= ramp[::-1]
        parts += [silence, soft] if number else [soft]
    return np.concatenate(parts, axis=1)
