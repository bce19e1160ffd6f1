"""Outputs in words, as a card of the contact sheet shows them: texts cut, scores as bars, vectors by their size."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from typing import Any

#: characters of one text on a card
TEXT_MOST = 6000
#: texts or results of one job on its card
MANY = 8
#: labels of one text
LABELS_MOST = 6
#: numbers in a row that are a vector, not a list of numbers
VECTOR_LEAST = 16
#: items of a list, and characters of a text, inside JSON on a card
ITEMS_MOST, STRING_MOST = 12, 400
#: brackets inside each other, on a card
DEPTH_MOST = 8


def safe(text: object) -> str:
    """For any place between tags or inside a quoted attribute; control characters become visible."""
    shown = "".join(c if c >= " " or c in "\n\t" else "\ufffd" for c in str(text))
    return html.escape(shown, quote=True)


def said(text: str) -> str:
    """A text that a model wrote."""
    return f'<p class="said" dir="auto">{safe(text[:TEXT_MOST].strip())}</p>{_rest(text)}'


def value(data: Any) -> str:
    """A JSON value: labels with scores, vectors, or the value itself, shortened."""
    if _is_labels(data):
        return _bars(data)
    if isinstance(data, list) and data and all(map(_is_labels, data)):
        return "".join(map(_bars, data[:MANY])) + unseen(len(data) - MANY)
    if (size := _vectors(data)) is not None:
        return f'<p class="vector">{vectors_in_words(*size)}</p><pre>{safe(_short_json(data, items=4))}</pre>'
    if isinstance(data, Mapping) and isinstance(data.get("text"), str):
        rest = {name: item for name, item in data.items() if name != "text"}
        return said(data["text"]) + (value(rest) if any(isinstance(item, list) for item in rest.values()) else "")
    text = _short_json(data)
    return f"<pre>{safe(text[:TEXT_MOST])}</pre>{_rest(text)}"


def _rest(text: str) -> str:
    left = len(text) - TEXT_MOST
    return f'<p class="more">… {left:,} more characters</p>' if left > 0 else ""


def scores(found: Mapping[str, Any]) -> str:
    """What an evaluation came to: a number for each metric."""
    shown = {name: f"{number:.4g}" if _is_number(number) else "–" for name, number in list(found.items())[: 4 * MANY]}
    rows = [f"<dt>{safe(str(name)[:100])}</dt><dd>{number}</dd>" for name, number in shown.items()]
    return f'<dl class="scores">{"".join(rows)}</dl>'


def unseen(count: int) -> str:
    """That there is more than the card shows."""
    return f'<p class="more">… and {count:,} more</p>' if count > 0 else ""


def vectors_in_words(count: int, dimensions: int) -> str:
    """`3 vectors of 384 numbers`."""
    return f"{count:,} {'vector' if count == 1 else 'vectors'} of {dimensions:,} numbers"


def _is_labels(data: Any) -> bool:
    return isinstance(data, list) and bool(data) and all(map(_is_label, data))


def _is_label(item: Any) -> bool:
    return isinstance(item, Mapping) and item.keys() == {"label", "score"} and _is_number(item["score"])


def _bars(labels: Sequence[Mapping[str, Any]]) -> str:
    """The likeliest labels; scores outside 0..1 have a number and no bar."""
    rows = []
    for item in labels[:LABELS_MOST]:
        score = float(item["score"])
        width = f"{100 * score:.1f}" if 0 <= score <= 1 else "0"
        rows.append(
            f'<li><span dir="auto">{safe(str(item["label"])[:200])}</span><b>{score:.3f}</b>'
            f'<svg viewBox="0 0 100 4" preserveAspectRatio="none" aria-hidden="true">'
            f'<rect width="{width}" height="4"/></svg></li>'
        )
    return f'<ol class="labels">{"".join(rows)}</ol>' + unseen(len(labels) - LABELS_MOST)


def _vectors(data: Any) -> tuple[int, int] | None:
    """How many vectors this is, and of how many numbers; None if it is something else."""
    if _is_vector(data):
        return 1, len(data)
    if isinstance(data, list) and data and all(map(_is_vector, data)) and len({len(row) for row in data}) == 1:
        return len(data), len(data[0])
    return None


def _is_vector(data: Any) -> bool:
    return isinstance(data, list) and len(data) >= VECTOR_LEAST and all(map(_is_number, data))


def _is_number(data: Any) -> bool:
    return isinstance(data, (int, float)) and not isinstance(data, bool)


def _short_json(data: Any, *, items: int = ITEMS_MOST) -> str:
    return json.dumps(_shortened(data, items, DEPTH_MOST), ensure_ascii=False, indent=None if _is_flat(data) else 2)


def _is_flat(data: Any) -> bool:
    return isinstance(data, list) and not any(isinstance(item, (list, Mapping)) for item in data)


def _shortened(data: Any, items: int, depth: int) -> Any:
    if isinstance(data, str):
        return data if len(data) <= STRING_MOST else f"{data[:STRING_MOST]}… ({len(data):,} characters)"
    if isinstance(data, float):
        return float(f"{data:.6g}")
    if isinstance(data, (list, Mapping)) and data and depth == 0:
        return "…"
    if isinstance(data, list):
        kept = [_shortened(item, items, depth - 1) for item in data[:items]]
        return kept if len(data) <= items else [*kept, f"… {len(data):,} in all"]
    if isinstance(data, Mapping):
        most = 4 * ITEMS_MOST
        pairs = {name[:STRING_MOST]: _shortened(data[name], items, depth - 1) for name in list(data)[:most]}
        return pairs if len(data) <= most else {**pairs, "…": f"{len(data):,} in all"}
    return data
