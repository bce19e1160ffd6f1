"""The files of an evaluation: every value with all that it depends on, as JSON, and a plot of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from workers.generators import Output
from workers.scores import Score, rounded
from workers.scores.case import Case
from workers.scores.chart import HEIGHT, WIDTH, chart


def outputs_of(case: Case, scores: Sequence[Score], model: Mapping[str, str] | None) -> list[Output]:
    """A JSON file and a PNG."""
    facts = {
        "outputs": len(case.outputs),
        "references": 0 if case.references is None else len(case.references),
        "scores": {score.metric: rounded(score.value) for score in scores},
    }
    said: dict[str, Any] = {
        "outputs": facts["outputs"],
        "references": facts["references"],
        "model": model,
        "scores": [score.to_json() for score in scores],
        "items": _items(case, scores),
    }
    body = json.dumps(said, ensure_ascii=False, allow_nan=False).encode()
    picture = {"width": WIDTH, "height": HEIGHT * len(scores), "plot": True}
    return [Output("application/json", body, facts), Output("image/png", lambda: chart(scores), picture)]


def _items(case: Case, scores: Sequence[Score]) -> list[dict[str, Any]]:
    """A row for each output, with its name, where it has one, and its own values."""
    alone = [score for score in scores if score.items is not None]
    rows: list[dict[str, Any]] = []
    for number, label in enumerate(case.outputs.labels if alone else ()):
        row: dict[str, Any] = {"index": number} | ({"output": label} if label else {})
        if "texts" in case.made:
            row["heard"] = case.texts[number]
        rows.append(row | {score.metric: rounded((score.items or ())[number]) for score in alone})
    return rows
