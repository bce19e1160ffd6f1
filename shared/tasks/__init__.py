"""The contract of each task: its Params, what it needs, what a job of it costs.

One file per task in this package; the generators that carry tasks out live in `workers/generators/`. A task is found
through the entry-point group `aigc.tasks`, so that a third party adds one without touching this project.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from typing import Any

from pydantic import BaseModel, ConfigDict
from rapidfuzz import process

from shared.errors import RequestError


class Params(BaseModel):
    """The typed parameters of a task. Unknown names are errors; values are checked at submit."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, hide_input_in_errors=True)


@dataclass(frozen=True, slots=True)
class Task:
    """What a kind of work asks for and yields."""

    #: the Hugging Face hub's name for it, such as `text-to-image`
    name: str
    #: one line for `aigc tasks`
    summary: str
    #: what a job of this task may set
    params: type[Params]
    #: whether a job has to name a model
    needs_model: bool
    #: where its jobs wait unless they say otherwise
    queue: str
    #: estimated seconds of one job on a small device; only the ratio between jobs matters
    cost: Callable[[Any], float]
    #: a job that can be submitted as it stands
    example: Mapping[str, Any]
    #: where it depends on the params whether a job has to name a model (`needs_model` is False then): which one, in
    #: words, or None where it takes none
    model_for: Callable[[Any], str | None] | None = None


@cache
def all_tasks() -> dict[str, Task]:
    """Every installed task by name."""
    return {point.name: point.load() for point in sorted(entry_points(group="aigc.tasks"), key=lambda p: p.name)}


def get_task(name: str) -> Task:
    """The task of this name; raises `RequestError` that names the nearest known one."""
    tasks = all_tasks()
    if name in tasks:
        return tasks[name]
    raise RequestError(f"unknown task {name!r}{did_you_mean(name, tasks)}")


def did_you_mean(name: str, known: Mapping[str, object] | list[str]) -> str:
    """A hint such as `; did you mean 'echo'?`, or the list of what is known if nothing is near."""
    names = list(known)
    best = process.extractOne(name, names, score_cutoff=60)
    if best:
        return f"; did you mean {best[0]!r}?"
    return f"; known: {', '.join(sorted(names))}" if names else ""
