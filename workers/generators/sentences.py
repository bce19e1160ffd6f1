"""Long texts in pieces that a voice can say in one breath, and the sound of the pieces joined again without clicks."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import numpy as np

from workers.generators.sound_files import Samples

#: where a sentence ends: its mark and closing quotes, then a space; marks of Chinese and Japanese need none
_END = re.compile(r"[.!?…]+[\"'”’»)\]]*(?=\s)|[。！？]+[”’」』）]*|\n\s*\n")
#: a full stop after one of these, or after a single letter, ends nothing
_SHORT = re.compile(
    r"(?:^|[\s(])(?:[A-Za-z]|Mr|Mrs|Ms|Dr|Prof|St|Sr|Jr|No|Nr|vs|etc|e\.g|i\.e|z\.\s?B|d\.\s?h|bzw|ca|approx|Fig)\.$"
)
_BREATH = re.compile(r"(?<=[,;:–—])\s+|(?<=[、，；：])")
#: seconds over which a piece fades in and out
FADE_S = 0.005


def sentences(text: str, *, most: int) -> list[str]:
    """The text in sentences of at most `most` characters; longer ones are cut at commas, then between words."""
    return [piece for sentence in _whole(text) for piece in _shorter(sentence, most)]


def _whole(text: str) -> Iterator[str]:
    start = 0
    for end in _END.finditer(text):
        sentence = text[start : end.end()]
        if end[0].startswith(".") and (_SHORT.search(sentence) or text[end.end() :].lstrip()[:1].islower()):
            continue
        start = end.end()
        if any(letter.isalnum() for letter in sentence):
            yield " ".join(sentence.split())
    if any(letter.isalnum() for letter in text[start:]):
        yield " ".join(text[start:].split())


def _shorter(sentence: str, most: int) -> Iterator[str]:
    if len(sentence) <= most:
        yield sentence
        return
    parts = [part for part in _BREATH.split(sentence) if part]
    words = [word for part in parts for word in ([part] if len(part) <= most else part.split())]
    piece = ""
    for word in words:
        if piece and len(piece) + 1 + len(word) > most:
            yield piece
            piece = ""
        piece = f"{piece} {word}".strip()
        while len(piece) > most:  # a word without end
            yield piece[:most]
            piece = piece[most:]
    if piece:
        yield piece


def joined(pieces: Sequence[Samples], *, rate: int, pause_s: float) -> Samples:
    """One sound of (channels, samples): each piece fades in and out, with silence between them."""
    fade = max(1, round(FADE_S * rate))
    silence = np.zeros((len(pieces[0]), round(pause_s * rate)), dtype=np.float32)
    parts: list[Samples] = []
    for number, piece in enumerate(pieces):
        soft = piece.astype(np.float32)
        ramp = np.linspace(0.0, 1.0, min(fade, soft.shape[1]), dtype=np.float32)
        soft[:, : len(ramp)] *= ramp
        soft[:, soft.shape[1] - len(ramp) :] *= ramp[::-1]
        parts += [silence, soft] if number else [soft]
    return np.concatenate(parts, axis=1)
