"""What was said when, as subtitles."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

#: a subtitle has at most so many characters and seconds; a silence longer than this begins another
_CHARACTERS, _SECONDS, _SILENCE_S = 80, 6.0, 0.8


class Said(NamedTuple):
    """A piece of speech."""

    text: str
    #: seconds
    begin: float
    end: float


def in_lines(words: Iterable[Said]) -> list[Said]:
    """Words put together to what fits under a picture."""
    lines: list[Said] = []
    for word in words:
        if lines:
            last = lines[-1]
            text = f"{last.text} {word.text.strip()}"
            near = word.begin - last.end <= _SILENCE_S and word.end - last.begin <= _SECONDS
            if near and len(text) <= _CHARACTERS:
                lines[-1] = Said(text, last.begin, word.end)
                continue
        lines.append(Said(word.text.strip(), word.begin, word.end))
    return lines


def as_srt(pieces: Iterable[Said]) -> str:
    """SubRip."""
    blocks = (
        f"{number}\n{_time(piece.begin, ',')} --> {_time(piece.end, ',')}\n{_lines(piece.text)}\n"
        for number, piece in enumerate(pieces, start=1)
    )
    return "\n".join(blocks)


def as_vtt(pieces: Iterable[Said]) -> str:
    """WebVTT."""
    blocks = (
        f"{_time(piece.begin, '.')} --> {_time(piece.end, '.')}\n"
        f"{_lines(piece.text).replace('&', '&amp;').replace('<', '&lt;').replace('>', '&gt;')}\n"
        for piece in pieces
    )
    return "WEBVTT\n\n" + "\n".join(blocks)


def _time(seconds: float, mark: str) -> str:
    thousandths = round(max(0.0, seconds) * 1000)
    minutes, rest = divmod(thousandths, 60_000)
    return f"{minutes // 60:02}:{minutes % 60:02}:{rest // 1000:02}{mark}{rest % 1000:03}"


def _lines(text: str) -> str:
    """Without empty lines, which would end a subtitle."""
    return "\n".join(line for line in map(str.strip, text.splitlines()) if line)
