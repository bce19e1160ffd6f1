"""What was said when, as subtitles."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple


class Said(NamedTuple):
    """A piece of speech."""

    text: str
    #: seconds
    begin: float
    end: float


def as_srt(pieces: Iterable[Said]) -> str:
    """SubRip."""
    blocks = (
        f"{number}\n{_time(piece.begin, ',')} --> {_time(piece.end, ',')}\n{piece.text.strip()}\n"
        for number, piece in enumerate(pieces, start=1)
    )
    return "\n".join(blocks)


def as_vtt(pieces: Iterable[Said]) -> str:
    """WebVTT."""
    blocks = (f"{_time(piece.begin, '.')} --> {_time(piece.end, '.')}\n{_plain(piece.text)}\n" for piece in pieces)
    return "WEBVTT\n\n" + "\n".join(blocks)


def _time(seconds: float, mark: str) -> str:
    thousandths = round(max(0.0, seconds) * 1000)
    minutes, rest = divmod(thousandths, 60_000)
    return f"{minutes // 60:02}:{minutes % 60:02}:{rest // 1000:02}{mark}{rest % 1000:03}"


def _plain(text: str) -> str:
    """A line of text that WebVTT takes for nothing else."""
    return text.strip().replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
