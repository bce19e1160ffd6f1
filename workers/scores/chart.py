"""A small plot of scores: a row for each, with its value and how those of the single outputs are spread."""

from __future__ import annotations

import io
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from workers.scores import Score, rounded

#: pixels of the plot, and of one row
WIDTH, HEIGHT = 720, 84
#: where the bars stand in a row, and how many there are
_LEFT, _RIGHT, _TOP, _BOTTOM = 300, 696, 12, 58
_BARS = 36

_PAPER, _INK, _GREY, _BAR, _MARK = "#ffffff", "#1b1f24", "#6a737d", "#a8c5e2", "#c2410c"


def chart(scores: Sequence[Score]) -> bytes:
    """A PNG."""
    image = Image.new("RGB", (WIDTH, HEIGHT * len(scores)), _PAPER)
    draw = ImageDraw.Draw(image)
    large, small = ImageFont.load_default(22), ImageFont.load_default(13)
    for number, score in enumerate(scores):
        top = HEIGHT * number
        if number:
            draw.line((0, top, WIDTH, top), fill="#e3e6ea")
        shown = "none" if score.value is None else f"{rounded(score.value):.4g}"
        draw.text((20, top + 14), f"{score.metric}  {shown}", fill=_INK, font=large)
        arrow = "more is better" if score.better == "higher" else "less is better"
        draw.text((20, top + 50), f"n = {score.n:,}, {_ascii(score.scale)}, {arrow}", fill=_GREY, font=small)
        values = [value for value in score.items or () if value is not None]
        if values:
            _spread(draw, top, values, score.value, small)
    body = io.BytesIO()
    image.save(body, "PNG")
    return body.getvalue()


def _spread(
    draw: ImageDraw.ImageDraw,
    top: int,
    values: Sequence[float],
    whole: float | None,
    font: ImageFont.ImageFont | ImageFont.FreeTypeFont,
) -> None:
    """Bars over the range of the values, and a mark where the value of the whole stands."""
    marks = [*values, *([] if whole is None else [whole])]
    least, most = min(marks), max(marks)
    span = most - least or 1.0
    counts = [0] * _BARS
    for value in values:
        counts[min(_BARS - 1, int((value - least) / span * _BARS))] += 1
    width = (_RIGHT - _LEFT) / _BARS
    for number, count in enumerate(counts):
        left = _LEFT + number * width
        height = (_BOTTOM - _TOP) * count / max(counts)
        if count:
            draw.rectangle((left, top + _BOTTOM - max(1, height), left + width - 2, top + _BOTTOM), fill=_BAR)
    draw.line((_LEFT, top + _BOTTOM + 1, _RIGHT, top + _BOTTOM + 1), fill=_GREY)
    if whole is not None:
        at = _LEFT + (whole - least) / span * (_RIGHT - _LEFT)
        draw.line((at, top + _TOP - 4, at, top + _BOTTOM + 1), fill=_MARK, width=2)
    draw.text((_LEFT, top + _BOTTOM + 5), f"{least:.4g}", fill=_GREY, font=font)
    if most > least:
        draw.text((_RIGHT, top + _BOTTOM + 5), f"{most:.4g}", fill=_GREY, font=font, anchor="ra")


def _ascii(text: str) -> str:
    """What the font that comes with Pillow can draw."""
    return text.replace("–", "-")
