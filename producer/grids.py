"""The jobs of one `aigc run`: every combination of the varied values, each with as many seeds as wanted."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from pydantic_core import from_json, to_json

from producer.earlier import COUNTS
from producer.requests import draw_seeds, from_text, printable
from producer.words import several
from shared.errors import RequestError
from shared.tasks import did_you_mean, get_task

#: most jobs of one run: so many have a place on one contact sheet
MOST = 5000
#: keys of a job that can be varied as params are
_KEYS = ("model", "seed")


@dataclass(frozen=True, slots=True)
class Axis:
    """A param and the values that it takes in turn."""

    name: str
    values: Sequence[Any]


def axis(said: str, task: str) -> Axis:
    """`guidance_scale=3,5,7`, or `prompt=["one, two", "three"]` where a value has a comma. Raises `RequestError`."""
    name, equals, listed = said.partition("=")
    if not equals or not name or not listed.strip():
        raise RequestError(f"--vary {said!r} must be written k=v1,v2,…, for example guidance_scale=3,5,7")
    known = [*_KEYS, *get_task(task).params.model_fields]
    if name not in known:
        raise RequestError(f"--vary {printable(name)}: {task} has no such param{did_you_mean(name, known)}")
    values = _from_list(name, listed) if listed.lstrip().startswith("[") else _from_commas(task, name, listed)
    keys = [to_json(value) for value in values]
    for place, key in enumerate(keys):
        if key in keys[:place]:
            raise RequestError(f"--vary {name}: {printable(key.decode())} stands there twice")
    return Axis(name, [_as_seed(value) for value in values] if name == "seed" else values)


def _from_list(name: str, listed: str) -> list[Any]:
    try:
        values = from_json(listed, allow_inf_nan=False)
    except ValueError as error:
        raise RequestError(f"--vary {name}: what begins with [ must be a JSON list: {error}") from None
    if not isinstance(values, list) or not values:
        raise RequestError(f"--vary {name}: the list must hold at least one value")
    return values


def _from_commas(task: str, name: str, listed: str) -> list[Any]:
    parts = [part.strip() for part in listed.split(",")]
    if not all(parts):
        raise RequestError(f"--vary {name}: a value is empty; write {name}=v1,v2,…")
    return parts if name in _KEYS else [from_text(task, name, part) for part in parts]


def _as_seed(value: object) -> int:
    text = str(value)
    if not (text.isascii() and text.isdigit()):
        raise RequestError(f"--vary seed: must be whole numbers from 0, got {text!r}")
    return int(text)


def planned(
    task: str,
    params: Mapping[str, Any],
    *,
    model: str | None = None,
    seed: int | None = None,
    axes: Sequence[Axis] = (),
    n: int = 1,
) -> list[dict[str, Any]]:
    """One job for each combination and seed; the last axis changes first, then comes the next seed.

    All combinations are made with the same seeds, so that only what is varied makes a difference: from `seed` on, or
    from one that is drawn here. A job with several outputs uses as many. Raises `RequestError` for over 5,000 jobs.
    """
    names = [each.name for each in axes]
    for name in names:
        if names.count(name) > 1:
            raise RequestError(f"--vary {name} is given twice: put all its values into one, {name}=v1,v2,…")
    if "seed" in names and n > 1:
        raise RequestError("--vary seed and --n both say which seeds to use: leave one out")
    count = math.prod(len(each.values) for each in axes) * n
    if count > MOST:
        raise RequestError(f"these are {count:,} jobs, at most {MOST:,} fit in one run: write a file for `aigc submit`")
    if "seed" in names:
        seed = None
    elif axes and seed is None:
        [seed] = draw_seeds(1)
    jobs: list[dict[str, Any]] = []
    for values in product(*(each.values for each in axes)):
        chosen = dict(zip(names, values, strict=True))
        keys: dict[str, Any] = {} if model is None else {"model": model}
        keys |= {name: chosen.pop(name) for name in _KEYS if name in chosen}
        job: dict[str, Any] = {"task": task, "params": {**params, **chosen}, **keys}
        if seed is None:
            jobs += [job] * n
        else:
            jobs += [{**job, "seed": seed + copy * _outputs(job["params"])} for copy in range(n)]
    return jobs


def _outputs(params: Mapping[str, Any]) -> int:
    """How many seeds a job uses."""
    return max((value for name in COUNTS if type(value := params.get(name)) is int and value > 0), default=1)


def in_words(axes: Sequence[Axis], n: int, count: int) -> str:
    """`6 jobs: guidance_scale 3, 5, 7 × 2 seeds`."""
    parts = [f"{each.name} {', '.join(_shown(value) for value in each.values)}" for each in axes]
    parts += [several(n, "seed")] if n > 1 else []
    return f"{several(count, 'job')}: {' × '.join(parts)}"


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else to_json(value).decode()
    return printable(text if len(text) <= 40 else f"{text[:39]}…")
